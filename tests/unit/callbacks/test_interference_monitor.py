"""The monitor sees what it should, when it should, and the run never notices."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lit_semantic_peft.callbacks import AdapterExport, FactReport, InterferenceMonitor, Refine, interference_monitor
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import Question, Reversed
from lit_semantic_peft.interference import (
    fact_log_probability,
    feature_store,
    gradient_matrix,
    per_fact_gradients,
    train_alone,
)
from lit_semantic_peft.models import adapter_state_dict
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.reports.tables import read_interference
from lit_semantic_peft.semantics import Proximity, Surprisal
from lit_semantic_peft.training import OwnSamples
from lit_semantic_peft.training.interference_aware import fact_sample
from peft import LoraConfig

from fixtures.clock import Clock
from fixtures.training import fit

pytestmark = pytest.mark.usefixtures("shared_cache")

NUM_FACTS = 12  # of the file; 12 facts in micro-batches of 4, two per step: steps of 8 and 4


def run(
    tiny_model,
    facts_file,
    monitor=None,
    *,
    epochs=3,
    resume=None,
    loggers=False,
    folder="run",
    max_steps=-1,
    min_epochs=None,
    before=(),
    data=None,
):
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.2)
    done = fit(
        tiny_model,
        facts_file,
        model={"peft_config": lora},
        data=data,
        trainer={
            "max_epochs": epochs,
            "min_epochs": min_epochs,
            "max_steps": max_steps,
            "accumulate_grad_batches": 2,
            "limit_val_batches": None,
            "logger": loggers,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
        },
        callbacks=[*before, *([monitor] if monitor else [])],
        ckpt_path=resume,
    )
    return done.trainer, done.module


def steps_of(monitor):
    return [record.global_step for record in monitor.records]


@pytest.mark.parametrize("num_facts", ["auto", 5])
def test_a_run_with_and_without_it_is_the_same_run(tiny_model, facts_file, num_facts):
    """Bit by bit, with dropout and accumulation, and a measurement after every step."""
    _, plain = run(tiny_model, facts_file)
    monitor = InterferenceMonitor(num_facts=num_facts, every_n_epochs=1, every_n_steps=1, time_budget=0.9)
    _, watched = run(tiny_model, facts_file, monitor)
    assert len(monitor.records) >= 1
    left, right = adapter_state_dict(plain.model), adapter_state_dict(watched.model)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_when_it_measures(tiny_model, facts_file):
    by_epochs = InterferenceMonitor(num_facts=4, every_n_epochs=1)
    run(tiny_model, facts_file, by_epochs, epochs=3)
    assert steps_of(by_epochs) == [0, 2, 4, 6]
    assert [record.epoch for record in by_epochs.records] == [0, 1, 2, 3]
    by_steps = InterferenceMonitor(num_facts=4, every_n_epochs=0, every_n_steps=2)
    run(tiny_model, facts_file, by_steps, epochs=3)
    assert steps_of(by_steps) == [0, 2, 4, 6]  # once per step, not once per micro-batch
    both = InterferenceMonitor(num_facts=4, every_n_epochs=2, every_n_steps=4)
    run(tiny_model, facts_file, both, max_steps=5)
    assert steps_of(both) == [0, 4, 5]
    only_ends = InterferenceMonitor(num_facts=4, every_n_epochs=0)
    run(tiny_model, facts_file, only_ends)
    assert steps_of(only_ends) == [0, 6]


def test_off_is_off(tiny_model, facts_file):
    monitor = InterferenceMonitor(num_facts=0)
    run(tiny_model, facts_file, monitor)
    assert monitor.records == []
    assert monitor.latest is None
    assert not RunFolder("run").paths.interference.exists()


@pytest.mark.parametrize("final_facts", [512, 7])
def test_the_matrix_after_training_is_of_all_facts_up_to_a_limit(tiny_model, facts_file, final_facts):
    monitor = InterferenceMonitor(num_facts=3, final_facts=final_facts)
    trainer, module = run(tiny_model, facts_file, monitor)
    kept = read_interference(RunFolder("run").paths.interference)
    assert len(kept.fact_index) == min(final_facts, NUM_FACTS)
    expected = gradient_matrix(module.model, trainer.datamodule.training_batches(kept.fact_index.tolist(), 16))
    np.testing.assert_array_equal(kept.gradient_dot, expected.numpy())
    assert (kept.epoch, kept.global_step) == (3, 6)
    table = monitor.latest.columns([f"id-{row}" for row in range(NUM_FACTS)])
    assert sum(value is not None for value in table["harm_done"]) == min(final_facts, NUM_FACTS)


def test_groups_are_written(tiny_model, facts_file):
    monitor = InterferenceMonitor(num_facts=3)
    run(tiny_model, facts_file, monitor)
    groups = json.loads(Path("run/interference_by_group.json").read_text())
    assert set(groups["relation"]) == {"river", "capital"}
    assert sum(one["num_facts"] for one in groups["relation"].values()) == NUM_FACTS
    assert sum(one["share_of_harm_done"] for one in groups["relation"].values()) == pytest.approx(1)
    assert sum(one["num_facts"] for one in groups["distance_decile"].values()) == NUM_FACTS


def test_many_gradients_wait_on_disk_and_leave_nothing(tiny_model, facts_file, monkeypatch):
    in_memory = InterferenceMonitor(num_facts=4)
    run(tiny_model, facts_file, in_memory, folder="memory")
    monkeypatch.setattr(feature_store, "BYTES_IN_MEMORY", 0)
    on_disk = InterferenceMonitor(num_facts=4)
    run(tiny_model, facts_file, on_disk, folder="disk")
    assert on_disk.records == in_memory.records
    assert sorted(path.name for path in Path("disk").iterdir()) == sorted(p.name for p in Path("memory").iterdir())


def test_a_full_disk_costs_the_matrix_and_not_the_adapter(tiny_model, facts_file, monkeypatch, full_disk, caplog):
    monkeypatch.setattr(feature_store, "BYTES_IN_MEMORY", 0)
    monitor = InterferenceMonitor(num_facts=4)
    run(tiny_model, facts_file, monitor, before=[AdapterExport(), FactReport(show_summary=False)])
    assert monitor.records == []
    assert monitor.latest is None
    for step in (0, 4, 6):
        assert caplog.text.count(f"Interference after optimizer step {step} is not measured") == 1
    assert "`--interference.final_facts`" in caplog.text
    assert not RunFolder("run").paths.interference.exists()
    assert Path("run/adapter/adapter_config.json").is_file()
    assert RunFolder("run").facts.num_rows == NUM_FACTS


def test_facts_alone_start_where_training_started(tiny_model, facts_file):
    monitor = InterferenceMonitor(num_facts=3, alone_facts=4)
    logger = CSVLogger("logs", name="csv", version="")
    trainer, module = run(tiny_model, facts_file, monitor, epochs=2, loggers=[logger])
    start = run(tiny_model, facts_file, epochs=0, folder="start")[1].model
    result = monitor.alone.compute()
    rows = (~result["difference"].isnan()).nonzero().flatten().tolist()
    assert len(rows) == 4
    batch = trainer.datamodule.training_batches(rows, 4)[0]
    alone = train_alone(start, batch, [1e-2, 1e-2], partial(torch.optim.AdamW, lr=1.0))
    expected = fact_log_probability(module.model, batch) - alone
    torch.testing.assert_close(result["difference"][batch.fact_index], expected, rtol=1e-4, atol=1e-4)
    written = json.loads(Path("run/alone_versus_together.json").read_text())
    assert (written["steps_alone"], written["steps_together"]) == (2, 4)
    assert set(written["difference"]) == {trainer.datamodule.prepared.facts[i].id for i in batch.fact_index.tolist()}
    with open("logs/csv/metrics.csv", newline="") as file:
        logged = [row["interference/alone_versus_together"] for row in csv.DictReader(file)]
    assert [float(value) for value in logged if value] == pytest.approx([written["mean"]])


class Taught(Callback):
    """The texts that training ran for each fact, with the mean learning rate of the epoch."""

    def __init__(self):
        self.texts, self.rates, self.start = [], {}, []

    def on_train_start(self, trainer, pl_module):
        self.start = [one.detach().clone() for one in pl_module.model.parameters() if one.requires_grad]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pairs = zip(batch.fact_index.tolist(), batch.text_index.tolist(), strict=True)
        self.texts += [(trainer.current_epoch, fact, text) for fact, text in pairs]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.setdefault(trainer.current_epoch, []).append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("refine", "max_steps"), [([], 5), ([Refine(num_steps=3)], 8)], ids=["part of an epoch", "second pass"]
)
def test_facts_alone_are_taught_as_training_taught_them(tiny_model, facts_file, refine, max_steps):
    """Against a loop over the texts that each fact was seen in; 12 facts in steps of 4, three an epoch."""
    monitor, seen = InterferenceMonitor(num_facts=2, alone_facts=NUM_FACTS), Taught()
    settings = {
        "model": {"schedule": "linear"},
        "data": {"micro_batch_size": 2, "append_eos": True, "sources": [Question(0.4), Reversed(0.4)]},
        "trainer": {"max_epochs": -1, "max_steps": max_steps, "accumulate_grad_batches": 2},
    }
    done = fit(tiny_model, facts_file, callbacks=[*refine, monitor, seen], **settings)
    model, forms = done.module.model, done.data.prepared.forms
    parameters = [one for one in model.parameters() if one.requires_grad]

    def log_p(text):
        encoded = forms.texts[text]
        ids = torch.tensor([*encoded.prompt_ids, *encoded.target_ids, *encoded.end_ids])
        first = len(encoded.prompt_ids)
        predicted = model(input_ids=ids[None]).logits[0, first - 1 : -1].log_softmax(dim=-1)
        return predicted.gather(1, ids[first:, None]).sum(), len(ids) - first

    model.eval()
    expected, counts = [], []
    with torch.no_grad():
        together = [float(log_p(row)[0]) for row in range(NUM_FACTS)]
    for row in range(NUM_FACTS):
        with torch.no_grad():
            for parameter, value in zip(parameters, seen.start, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        texts = [(epoch, text) for epoch, fact, text in seen.texts if fact == row]
        counts.append(len(texts))
        for epoch, text in texts:
            optimizer.zero_grad()
            total, num_tokens = log_p(text)
            (-total / num_tokens).backward()
            optimizer.param_groups[0]["lr"] = float(np.mean(seen.rates[epoch]))
            optimizer.step()
        expected.append(together[row] - float(log_p(row)[0].detach()))
    assert len(set(counts)) > 1, "some facts were seen more often than others"
    np.testing.assert_allclose(monitor.alone.compute()["difference"].numpy(), expected, atol=2e-3)
    written = json.loads(Path("alone_versus_together.json").read_text())
    assert written["steps_alone"] == pytest.approx(np.mean(counts))
    assert written["only_together"] == []


def test_what_training_holds_still_is_said_not_to_be_held_alone(tiny_model, facts_file, caplog):
    retain = [OwnSamples(num_samples=4, length=4)]
    callbacks = [InterferenceMonitor(num_facts=2, alone_facts=2)]
    fit(tiny_model, facts_file, model={"retain": retain}, callbacks=callbacks)
    assert json.loads(Path("alone_versus_together.json").read_text())["only_together"] == ["OwnSamples"]
    assert "alone without `model.retain` (OwnSamples)" in caplog.text


def test_one_fact_has_no_others_to_be_compared_with(tiny_model, facts_file):
    callbacks = [InterferenceMonitor(num_facts=2, alone_facts=2)]
    with pytest.raises(InputError, match="only one is trained"):
        fit(tiny_model, facts_file, data={"num_facts": 1}, callbacks=callbacks)


def test_alone_only_what_was_taught(tiny_model, facts_file):
    """The farthest by `Surprisal` has weight 0 under `Proximity`."""
    monitor = InterferenceMonitor(num_facts=3, alone_facts=NUM_FACTS)
    weighed = {"distance": Surprisal(), "weighting": Proximity()}
    trainer, _ = run(tiny_model, facts_file, monitor, epochs=1, data=weighed)
    weight = trainer.datamodule.prepared.weights.start
    assert (weight == 0).sum() == 1
    written = json.loads(Path("run/alone_versus_together.json").read_text())
    ids = [fact.id for fact in trainer.datamodule.prepared.facts]
    assert set(written["difference"]) == {ids[row] for row in np.flatnonzero(weight > 0)}


def test_a_wish_to_stop_is_not_the_end_before_min_epochs(tiny_model, facts_file):
    class StopSoon(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    monitor = InterferenceMonitor(num_facts=4, every_n_epochs=1)
    trainer, _ = run(tiny_model, facts_file, monitor, epochs=5, min_epochs=3, before=[StopSoon()])
    assert trainer.current_epoch == 3
    assert [record.epoch for record in monitor.records] == [0, 1, 2, 3]


def test_a_resumed_run_remembers_the_start(tiny_model, facts_file):
    whole = InterferenceMonitor(num_facts=3, alone_facts=3)
    run(tiny_model, facts_file, whole, epochs=2)
    trainer, _ = run(tiny_model, facts_file, InterferenceMonitor(num_facts=3, alone_facts=3), epochs=1)
    trainer.save_checkpoint("half.ckpt")
    resumed = InterferenceMonitor(num_facts=3, alone_facts=3)
    run(tiny_model, facts_file, resumed, epochs=2, resume="half.ckpt")
    left, right = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(left["start"], right["start"], strict=True))
    assert left["rates"] == right["rates"]
    assert resumed.alone.compute()["difference"].isnan().sum() == NUM_FACTS - 3


class Measurements(Clock):
    """Time that passes only in measurements, and of how many facts these are."""

    def __init__(self, monkeypatch, *, training: float, measurement: float):
        super().__init__()
        self.measured = []
        real = interference_monitor.gradient_matrix

        def fake_training(model, batches, precision):
            seconds = training * sum(len(batch) for batch in batches)
            self.passes(seconds)
            return seconds

        def fake_matrix(model, batches, folder=None):
            self.measured.append(sum(len(batch) for batch in batches))
            self.passes(measurement * self.measured[-1])
            return real(model, batches)

        monkeypatch.setattr(interference_monitor, "time_forward_and_backward", fake_training)
        monkeypatch.setattr(interference_monitor, "gradient_matrix", fake_matrix)
        monkeypatch.setattr(fact_sample, "gradient_matrix", fake_matrix)


@pytest.mark.parametrize("budget", [0.2, 0.5])
def test_the_sample_is_as_large_as_the_budget_allows(tiny_model, facts_file, monkeypatch, budget):
    epochs = 20
    clock = Measurements(monkeypatch, training=1.0, measurement=1.5)
    monitor = InterferenceMonitor(time_budget=budget, every_n_epochs=7)
    monitor.clock = clock
    run(tiny_model, facts_file, monitor, epochs=epochs)
    training = 1.0 * NUM_FACTS * epochs
    pilot = 1.0 + 8 * 1.0 + 8 * 1.5
    size = min(int((budget * training - pilot) / (3 * 1.5)), NUM_FACTS)  # before, after 7 and after 14 epochs
    assert clock.measured == ([8, size, size, size, NUM_FACTS])
    assert monitor.seconds_in_training <= budget * training
    assert size == NUM_FACTS or monitor.seconds_in_training > budget * training - 3 * 1.5


def test_training_is_timed_in_its_precision(tiny_model, facts_file, monkeypatch):
    """The measurements stay in float32."""
    real, found = per_fact_gradients.fact_nll, []

    def watched(model, batch, **arguments):
        found.append(torch.is_autocast_enabled("cpu"))
        return real(model, batch, **arguments)

    monkeypatch.setattr(per_fact_gradients, "fact_nll", watched)
    fit(tiny_model, facts_file, trainer={"precision": "bf16-mixed"}, callbacks=[InterferenceMonitor()])
    assert found[:3] == [True, True, False]  # warms up, 8 facts in training, 8 facts in a measurement
    assert not any(found[3:])


def test_a_budget_too_small_for_two_facts_measures_after_training_only(tiny_model, facts_file, monkeypatch):
    clock = Measurements(monkeypatch, training=1.0, measurement=1.5)
    monitor = InterferenceMonitor(time_budget=0.01)
    monitor.clock = clock
    run(tiny_model, facts_file, monitor)
    assert clock.measured == [8, NUM_FACTS]
    assert steps_of(monitor) == [6]


def test_a_resumed_run_keeps_sample_and_records(tiny_model, facts_file, monkeypatch):
    whole = InterferenceMonitor(num_facts=5, every_n_epochs=1)
    run(tiny_model, facts_file, whole, epochs=4)
    clock = Measurements(monkeypatch, training=10.0, measurement=1.0)
    first = InterferenceMonitor(every_n_epochs=1, time_budget=0.455)
    first.clock = clock
    trainer, _ = run(tiny_model, facts_file, first, epochs=2)
    trainer.save_checkpoint("half.ckpt")
    assert clock.measured == [8, 5, 5, NUM_FACTS]  # the first to time it
    clock.measured.clear()
    second = InterferenceMonitor(every_n_epochs=1, time_budget=0.9)
    trainer, _ = run(tiny_model, facts_file, second, epochs=4, resume="half.ckpt")
    assert clock.measured == [5, NUM_FACTS]
    assert steps_of(second) == steps_of(whole) == [0, 2, 4, 6, 8]
    assert second.records[:2] == whole.records[:2]
    assert second.state_dict()["sample_size"] == 5


def test_loggers_get_the_scalars_under_the_step(tiny_model, facts_file):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger("logs", name="csv", version=""), TensorBoardLogger("logs", name="tb", version="")]
    monitor = InterferenceMonitor(num_facts=4, every_n_epochs=1)
    run(tiny_model, facts_file, monitor, loggers=loggers)
    names = {
        "conflict_rate",
        "gradient_cosine_mean",
        "net_transfer_median",
        "share_net_transfer_below_0",
        "share_net_transfer_below_minus_1",
        "harm_done_top_tenth",
    }
    with open("logs/csv/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["interference/conflict_rate"]]
    assert [int(row["step"]) for row in rows] == steps_of(monitor)
    assert {name for name in rows[0] if name.startswith("interference/")} == {f"interference/{one}" for one in names}
    values = [float(row["interference/conflict_rate"]) for row in rows]
    assert values == pytest.approx([record.conflict_rate for record in monitor.records])
    events = EventAccumulator("logs/tb").Reload()
    for name in names:
        scalars = events.Scalars(f"interference/{name}")
        assert [scalar.step for scalar in scalars] == steps_of(monitor)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_facts": -1}, "num_facts"),
        ({"num_facts": "some"}, "num_facts"),
        ({"every_n_steps": -1}, "every_n_steps"),
        ({"every_n_epochs": -1}, "every_n_epochs"),
        ({"time_budget": 0.0}, "time_budget"),
        ({"time_budget": 1.5}, "time_budget"),
        ({"final_facts": 0}, "final_facts"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_out_of_range_are_named(arguments, named):
    with pytest.raises(InputError, match=f"`{named}`"):
        InterferenceMonitor(**arguments)
