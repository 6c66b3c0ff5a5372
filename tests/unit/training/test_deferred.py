"""Dropped facts that come back in a later epoch: which facts, with what weight, at which learning rate."""

from itertools import chain

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import FactReport, InterferenceMonitor
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import (
    FactFilter,
    Focal,
    Online,
    Proximity,
    RandomFilter,
    Remoteness,
    Scheduled,
    Selection,
)
from lit_semantic_peft.training import ConflictAwareBatching, InterferenceWeighting
from peft import LoraConfig

from fixtures.training import assert_same_adapter, fit, is_same_adapter, with_retained

pytestmark = pytest.mark.usefixtures("shared_cache")

LATE = {"filters": [RandomFilter(0.5, seed=3)], "deferred_from_epoch": 2}
FOUR_EPOCHS = {"max_epochs": 4}


class Rates(Callback):
    """Learning rate and weights of each micro-batch."""

    def __init__(self):
        self.rates, self.weights = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.weights.append(dict(zip(batch.fact_index.tolist(), batch.loss_weight.tolist(), strict=True)))


def test_each_epoch_has_its_facts_once(tiny_model, facts_file):
    run = fit(tiny_model, facts_file, data=LATE, trainer=FOUR_EPOCHS)
    module = run.module
    kept = module.data.prepared.kept_index
    assert len(kept) == 6
    # 6 facts are a step of 4 and one of 2; 12 facts are three steps of 4
    assert [len(step) for step in run.facts] == [4, 2, 4, 2, 4, 4, 4, 4, 4, 4]
    first, second, third, fourth = (
        sorted(chain(*run.facts[start:stop])) for start, stop in ((0, 2), (2, 4), (4, 7), (7, 10))
    )
    assert first == second == kept
    assert third == fourth == list(range(12))
    columns = module.data.prepared.columns()
    assert columns["kept"] == [row in kept for row in range(12)]
    assert columns["trained_from_epoch"] == [0 if row in kept else 2 for row in range(12)]


def test_before_that_epoch_it_is_the_run_without(tiny_model, facts_file):
    plain = fit(tiny_model, facts_file, data={"filters": LATE["filters"]}).of("train/loss")
    late = fit(tiny_model, facts_file, data=LATE, trainer={"max_steps": 5, "max_epochs": -1}).of("train/loss")
    assert len(plain) == 4
    assert late[:4] == plain


def test_a_deferred_run_in_which_nothing_was_dropped_is_the_plain_run(tiny_model, facts_file):
    plain = fit(tiny_model, facts_file, trainer=FOUR_EPOCHS).module
    assert is_same_adapter(
        plain, fit(tiny_model, facts_file, data={"deferred_from_epoch": 2}, trainer=FOUR_EPOCHS).module
    )


@pytest.mark.parametrize("weighting", [Remoteness(gamma=8.0), Scheduled(Proximity(4.0), Remoteness(8.0))])
def test_weights_are_those_of_the_facts_of_the_epoch(tiny_model, facts_file, weighting):
    rates = Rates()
    data = {**LATE, "weighting": weighting}
    module = fit(tiny_model, facts_file, data=data, trainer=FOUR_EPOCHS, callbacks=[rates]).module
    prepared = module.data.prepared
    distance = torch.tensor(prepared.scored.distance)
    for number, batch in enumerate(rates.weights):
        trained = list(range(12)) if number >= 4 else prepared.kept_index
        done = number / 9
        expected = sum(
            share * np.where(np.isin(np.arange(12), trained), raw / raw[trained].mean(), 0.0)
            for share, raw in zip(
                (1 - done, done), (end.raw(distance).numpy() for end in weighting.start_and_end), strict=True
            )
        )
        for row, weight in batch.items():
            assert weight == pytest.approx(expected[row], rel=1e-5)


def test_the_schedule_ends_with_the_last_step(tiny_model, facts_file):
    rates = Rates()
    model = {"schedule": "linear", "warmup_ratio": 0.0}
    module = fit(tiny_model, facts_file, data=LATE, model=model, trainer=FOUR_EPOCHS, callbacks=[rates]).module
    assert module.num_optimizer_steps == module.global_step == 10
    np.testing.assert_allclose(rates.rates, 1e-2 * (1 - np.arange(10) / 10))


@pytest.mark.parametrize("weighting", [Remoteness(gamma=8.0), Online(Focal())])
def test_it_does_not_depend_on_how_a_step_is_cut_up(tiny_model, facts_file, weighting):
    def run(micro_batch_size, accumulate):
        return fit(
            tiny_model,
            facts_file,
            data={**LATE, "weighting": weighting, "micro_batch_size": micro_batch_size},
            trainer={**FOUR_EPOCHS, "accumulate_grad_batches": accumulate},
        ).module

    whole = run(4, 1)
    assert_same_adapter(whole, run(1, 4))
    assert_same_adapter(whole, run(2, 2))


@pytest.mark.parametrize("step", [2, 3, 4, 5, 7, 8])  # end of epoch 0, in 1, its end, in 2, its end, in 3
def test_an_interrupted_run_goes_on_to_the_last_bit(tiny_model, facts_file, tmp_path, step):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == step and not trainer.is_last_batch:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    settings = {
        "data": {**LATE, "weighting": Scheduled(Proximity(4.0), Remoteness(8.0))},
        "model": {"schedule": "cosine", "warmup_ratio": 0.2},
        "trainer": FOUR_EPOCHS,
    }
    whole = fit(tiny_model, facts_file, callbacks=[Save()], **settings).module
    run = fit(tiny_model, facts_file, ckpt_path=str(tmp_path / "half.ckpt"), **settings)
    resumed = run.module
    assert resumed.global_step == 10
    assert sum(map(len, run.facts)) == 36 - sum([4, 2, 4, 2, 4, 4, 4, 4, 4, 4][:step])
    assert is_same_adapter(whole, resumed)


def test_a_checkpoint_of_another_epoch_is_refused(tiny_model, facts_file, tmp_path):
    module = fit(tiny_model, facts_file, data=LATE, trainer={"max_steps": 5, "max_epochs": 4}).module
    module.trainer.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match=r"`data\.selection\.deferred_from_epoch`: 2 in the checkpoint, 3 here"):
        fit(
            tiny_model,
            facts_file,
            data={**LATE, "deferred_from_epoch": 3},
            trainer=FOUR_EPOCHS,
            ckpt_path=str(tmp_path / "half.ckpt"),
        )


def test_methods_that_sample_facts_take_the_late_ones_when_they_are_trained(tiny_model, facts_file):
    weighting = InterferenceWeighting(beta=0, every_n_steps=2, num_facts=12)
    batching = ConflictAwareBatching(num_facts=12)
    run = fit(tiny_model, facts_file, data=LATE, trainer=FOUR_EPOCHS, callbacks=[weighting, batching])
    assert sorted(chain(*run.facts[4:7])) == list(range(12))
    assert batching.sample == list(range(12))
    assert (run.module.loss_weights.factor != 1).all()


def test_the_monitor_samples_the_facts_of_the_epoch(tiny_model, facts_file, tmp_path):
    class Sampled(Callback):
        def __init__(self):
            self.num_facts = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.num_facts.append((len(monitor.latest.fact_index), monitor.latest.num_trained_facts))

    monitor, sampled = InterferenceMonitor(num_facts=8, every_n_epochs=1), Sampled()
    trainer = {**FOUR_EPOCHS, "default_root_dir": tmp_path}
    fit(tiny_model, facts_file, data=LATE, trainer=trainer, callbacks=[monitor, sampled])
    assert sampled.num_facts[:3] == [(6, 6), (6, 6), (8, 12)]
    assert monitor.latest.num_trained_facts == 12
    assert monitor.latest.loss_weight.sum() == pytest.approx(12, rel=1e-5)
    assert [record.global_step for record in monitor.records] == [0, 2, 4, 7, 10], (
        "the last epoch is not measured twice"
    )


def test_frozen_layers_have_room_for_the_late_facts(tiny_model, facts_file):
    def run(reuse):
        model = {"peft_config": LoraConfig(r=4, target_modules=r".*layers\.1\..*_proj"), "reuse_frozen_layers": reuse}
        return fit(tiny_model, facts_file, data=LATE, model=model, trainer=FOUR_EPOCHS).module

    assert_same_adapter(run(False), run(True))


class DropsFour(FactFilter):
    """Drops the first four facts, each for another reason."""

    reasons = ("too_far", "already_known", "near_duplicate", "contradiction")

    def select(self, facts):
        return Selection(np.arange(len(facts)) >= 4, self.reasons + (None,) * (len(facts) - 4))


def test_what_need_not_or_must_not_be_taught_stays_dropped(tiny_model, facts_file):
    data = {"filters": [DropsFour()], "deferred_from_epoch": 1}
    run = fit(tiny_model, with_retained(facts_file), data=data)
    module = run.module
    assert sorted(chain(*run.facts[2:])) == [0, *range(4, 12)]
    first_epoch = [1, None, None, None] + [0] * 8 + [None] * 5  # the last five have the split `retain`
    assert module.data.prepared.columns()["trained_from_epoch"] == first_epoch


class Stop(Callback):
    """Ends training after an epoch, as `EarlyStopping` does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch >= self.epoch


def test_what_never_came_back_is_not_measured_and_said(tiny_model, facts_file, tmp_path, caplog):
    monitor = InterferenceMonitor(num_facts=4)
    report = FactReport(show_summary=False)
    trainer = {**FOUR_EPOCHS, "default_root_dir": str(tmp_path)}
    module = fit(tiny_model, facts_file, data=LATE, trainer=trainer, callbacks=[Stop(1), monitor, report]).module
    assert module.trainer.current_epoch == 2
    assert monitor.latest.compute()["fact_index"].tolist() == module.data.prepared.kept_index
    assert monitor.latest.num_trained_facts == 6
    assert "Training ended after 2 epochs, so what the filters dropped never came back" in caplog.text


@pytest.mark.parametrize(
    ("first", "trainer", "message"),
    [
        (0, {}, "`selection.deferred_from_epoch` must be at least 1, got 0"),
        (-1, {}, "`selection.deferred_from_epoch` must be at least 1, got -1"),
        (2, {}, "`deferred_from_epoch` must be below `trainer.max_epochs`, which is 2, got 2"),
        (1, {"max_steps": 2}, "`deferred_from_epoch` 1 begins after 2 optimizer steps, but `trainer.max_steps` is 2"),
        (1, {"limit_train_batches": 1}, "`deferred_from_epoch` needs whole epochs"),
    ],
)
def test_what_would_never_come_is_refused(tiny_model, facts_file, first, trainer, message):
    with pytest.raises(InputError, match=message):
        fit(tiny_model, facts_file, data={**LATE, "deferred_from_epoch": first}, trainer=trainer)
