"""Weightings that change in training, through whole runs."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lit_semantic_peft.callbacks import FactReport, InterferenceMonitor, LossWeightDistribution
from lit_semantic_peft.compatibility import refuse_incompatible
from lit_semantic_peft.data import KnowledgeDataModule, SelectionPlan
from lit_semantic_peft.data.situation import situation_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.reports.conflicts import worst_conflicts
from lit_semantic_peft.semantics import (
    Focal,
    Online,
    Proximity,
    Remoteness,
    ResponseDistance,
    Scheduled,
    SentenceDistance,
    Uniform,
)
from lit_semantic_peft.training import ConflictAwareBatching, GradientSurgery, ShardedBaseStrategy
from peft import PrefixTuningConfig

from fixtures.training import assert_same_adapter, fit, is_same_adapter

pytestmark = pytest.mark.usefixtures("shared_cache")

FAR = Remoteness(gamma=8.0)


class Weights(Callback):
    """The weights of each step's facts, as the loss had them, and as the module foretold them."""

    def __init__(self):
        self.of_step: list[dict[int, float]] = []
        self.foretold: list[dict[int, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rows = batch.fact_index.tolist()
        self.foretold.append(dict(zip(rows, pl_module.loss_weights.planned(rows).tolist(), strict=True)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.of_step.append(dict(zip(batch.fact_index.tolist(), batch.loss_weight.tolist(), strict=True)))


def test_online_weights_begin_as_those_of_the_base_model_and_then_go_their_own_way(tiny_model, facts_file):
    static = fit(tiny_model, facts_file, data={"weighting": FAR})
    online = fit(tiny_model, facts_file, data={"weighting": Online(FAR)})
    # At the start the adapter does nothing: the same weights up to a factor, which the normalisation takes out.
    assert online.of("train/loss")[0] == pytest.approx(static.of("train/loss")[0], rel=1e-5)
    assert online.of("train/loss")[-1] != pytest.approx(static.of("train/loss")[-1], rel=1e-5)


def test_surgery_sees_online_weights(tiny_model, facts_file):
    """Groups that do not conflict are left as they are, so the weights must be those of the plain run."""
    surgery = GradientSurgery(groups="relation", unit_norm=False)
    plain = fit(tiny_model, facts_file, data={"weighting": Online(FAR)}).module
    run = fit(tiny_model, facts_file, data={"weighting": Online(FAR)}, callbacks=[surgery])
    operated = run.module
    uniform = fit(tiny_model, facts_file, data={"weighting": Uniform()}).module
    found = [row["train/group_conflicts"] for row in run.logged if "train/group_conflicts" in row]
    assert set(found) == {0.0}
    assert_same_adapter(plain, operated, tolerance=1e-4)
    assert not is_same_adapter(plain, uniform)


def test_a_schedule_goes_from_the_first_weighting_to_the_last(tiny_model, facts_file):
    weights = Weights()
    module = fit(tiny_model, facts_file, data={"weighting": Scheduled(Proximity(), FAR)}, callbacks=[weights]).module
    prepared = module.data.prepared
    for expected, found in (
        (prepared.weights.start, weights.of_step[0]),
        (prepared.weights.end, weights.of_step[-1]),
    ):
        assert found == pytest.approx({row: expected[row] for row in found})
    middle = weights.of_step[len(weights.of_step) // 2]
    ends = {row: sorted((prepared.weights.start[row], prepared.weights.end[row])) for row in middle}
    assert all(ends[row][0] - 1e-6 <= weight <= ends[row][1] + 1e-6 for row, weight in middle.items())
    for found, foretold in zip(weights.of_step, weights.foretold, strict=True):
        assert found == pytest.approx(foretold)


def test_interference_is_measured_with_the_weights_of_its_time(tiny_model, facts_file):
    monitor = InterferenceMonitor(num_facts="all")
    data = {"weighting": Scheduled(Proximity(), FAR)}
    module = fit(tiny_model, facts_file, data=data, callbacks=[monitor]).module
    latest = monitor.latest
    at_the_end = module.data.prepared.weights.end[latest.fact_index.tolist()]
    assert latest.loss_weight.tolist() == pytest.approx(at_the_end.tolist())


def test_the_report_tells_what_is_undone_by_the_weights_of_the_measurement(tiny_model, facts_file, tmp_path):
    """Not by those of the start, which the fact table has as `loss_weight`."""
    weighting = Scheduled(Proximity(gamma=8.0), FAR)
    trainer = {"max_epochs": 4, "default_root_dir": tmp_path}
    callbacks = [InterferenceMonitor(num_facts=4), FactReport(show_summary=False)]
    module = fit(tiny_model, facts_file, data={"weighting": weighting}, trainer=trainer, callbacks=callbacks).module
    folder = RunFolder(tmp_path)
    facts, matrix = folder.facts, folder.matrix
    assert matrix.fact_index.tolist() == list(range(12))
    undone = {}
    for moment in ("start", "end"):
        w = getattr(module.data.prepared.weights, moment)
        share = -(matrix.gradient_dot * w[None, :]) / (w * matrix.gradient_dot.diagonal())[:, None]
        np.fill_diagonal(share, 0.0)
        undone[moment] = share.max(axis=1).clip(min=0)
    found = facts.column("undone_by_worst").to_pylist()
    assert found == pytest.approx(undone["end"].tolist(), rel=1e-4)
    assert found != pytest.approx(undone["start"].tolist(), rel=0.1)
    assert facts.column("loss_weight").to_pylist() == module.data.prepared.weights.start.tolist()
    assert facts.column("loss_weight_used").to_pylist() == module.loss_weights.used()
    worst = worst_conflicts(facts, matrix, count=12)
    assert [item.undone for item in worst] == sorted((one for one in found if one > 0), reverse=True)
    assert worst


def test_a_schedule_ends_where_the_steps_end(tiny_model, facts_file):
    weights = Weights()
    trainer = {"max_epochs": -1, "max_steps": 4}
    data = {"weighting": Scheduled(Proximity(), FAR)}
    module = fit(tiny_model, facts_file, data=data, trainer=trainer, callbacks=[weights]).module
    final = module.data.prepared.weights.end
    assert weights.of_step[-1] == pytest.approx({row: final[row] for row in weights.of_step[-1]})


def test_the_distribution_of_the_weights_is_logged(tiny_model, facts_file):
    module = fit(tiny_model, facts_file, data={"weighting": FAR}, callbacks=[LossWeightDistribution()]).module
    logged = module.trainer.callback_metrics
    weight = torch.tensor(module.data.prepared.weights.start)
    assert float(logged["weights/min"]) == pytest.approx(float(weight.min()))
    assert float(logged["weights/max"]) == pytest.approx(float(weight.max()))
    share = float(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))
    assert float(logged["weights/effective_share"]) == pytest.approx(share, rel=1e-5)


def test_a_distance_within_the_step_needs_whole_embeddings():
    def sharded(weighting):
        strategy = ShardedBaseStrategy()
        trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False, enable_checkpointing=False)
        data = KnowledgeDataModule(selection=SelectionPlan(weighting=weighting))
        return situation_of(trainer, "fit", data.preparation)

    with pytest.raises(InputError, match="`weighting` Online over a distance cannot be used with a sharded base model"):
        refuse_incompatible(sharded(Online(Proximity())))
    refuse_incompatible(sharded(Online(Focal())))
    refuse_incompatible(sharded(Proximity()))


@pytest.mark.parametrize("distance", [ResponseDistance(), SentenceDistance()])
def test_a_distance_of_answers_cannot_be_had_from_a_step(tiny_model, facts_file, distance):
    with pytest.raises(InputError, match=f"Online needs .* {distance.name} needs generated answers"):
        fit(tiny_model, facts_file, data={"weighting": Online(Proximity()), "distance": distance})


def test_prefixes_and_checkpointed_layers_exclude_each_other(tiny_model, facts_file):
    settings = {"gradient_checkpointing": True, "peft_config": PrefixTuningConfig(num_virtual_tokens=2)}
    with pytest.raises(InputError, match="`gradient_checkpointing` cannot be used with PrefixTuningConfig"):
        fit(tiny_model, facts_file, model=settings)


def test_steps_cannot_be_arranged_by_conflict_and_by_stratum(tiny_model, facts_file):
    trainer = {"max_epochs": 1}  # the first epoch, which has no conflicts yet, must not be trained for nothing
    with pytest.raises(InputError, match="`mix_strata`"):
        fit(tiny_model, facts_file, data={"mix_strata": True}, callbacks=[ConflictAwareBatching()], trainer=trainer)


def test_a_schedule_with_another_end_cannot_be_resumed(tiny_model, facts_file, tmp_path):
    module = fit(
        tiny_model, facts_file, data={"weighting": Scheduled(Proximity(), FAR)}, trainer={"max_epochs": 1}
    ).module
    module.trainer.save_checkpoint(tmp_path / "half.ckpt")
    other = {"weighting": Scheduled(Proximity(), Proximity())}
    with pytest.raises(InputError, match=r"`data.selection.weighting`: fact 'town-"):
        fit(tiny_model, facts_file, data=other, ckpt_path=str(tmp_path / "half.ckpt"))
