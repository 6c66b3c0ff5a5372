"""What a fact weighed on average is what the losses had, whoever decided it."""

import numpy as np
import pytest
from lightning.pytorch import Callback
from lit_semantic_peft.semantics import Online, Proximity, RandomFilter, Remoteness, Scheduled, Surprisal
from lit_semantic_peft.training import InterferenceWeighting
from lit_semantic_peft.training.loss_weights import LossWeights

from fixtures.training import fit

FAR = Remoteness(gamma=8.0)
KINDS = ["static", "scheduled", "online", "interference", "interference over online"]


def settings_of(kind):
    weighting = {"static": FAR, "scheduled": Scheduled(Proximity(), FAR)}.get(kind, FAR)
    callbacks = [InterferenceWeighting(beta=0.0, every_n_steps=2)] if kind.startswith("interference") else []
    return {
        "data": {"weighting": Online(weighting) if kind.endswith("online") else weighting},
        "callbacks": callbacks,
        "trainer": {"max_epochs": 3},
    }


class Seen(Callback):
    """Each fact's weights, from the gradient of the loss with regard to what the model says of the fact."""

    def __init__(self, monkeypatch):
        self.weights: dict[int, list[float]] = {}
        self.planned: dict[int, list[float]] = {}
        nll_and_weight = LossWeights.nll_and_weight

        def watched(weights, model, batch, frozen):
            nll, weight = nll_and_weight(weights, model, batch, frozen)
            rows = batch.fact_index.tolist()

            def note(gradient):
                for row, value in zip(rows, gradient.tolist(), strict=True):
                    self.weights.setdefault(row, []).append(value)

            nll.register_hook(note)
            for row, value in zip(rows, weights.planned(rows), strict=True):
                self.planned.setdefault(row, []).append(value)
            return nll, weight

        monkeypatch.setattr(LossWeights, "nll_and_weight", watched)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_that_of_the_losses(tiny_model, facts_file, monkeypatch, kind):
    seen = Seen(monkeypatch)
    settings = settings_of(kind)
    module = fit(tiny_model, facts_file, **settings).module
    used = module.loss_weights.used()
    assert [len(seen.weights[row]) for row in range(12)] == [3] * 12
    assert used == pytest.approx([np.mean(seen.weights[row]) for row in range(12)], rel=1e-6)
    planned = [np.mean(seen.planned[row]) for row in range(12)]
    if kind in ("static", "scheduled"):
        assert used == pytest.approx(planned, rel=1e-6)
        start = module.data.prepared.weights.start.tolist()
        assert (used == pytest.approx(start, rel=1e-6)) == (kind == "static")
    else:
        assert used != pytest.approx(planned, rel=1e-2)


def test_a_fact_that_weighs_nothing_at_first_counts_then_too_and_one_that_is_not_trained_has_none(
    tiny_model, facts_file
):
    """By `Surprisal` the farthest fact has weight 0 under `Proximity`."""
    weighting = Scheduled(Proximity(), Remoteness())
    data = {"distance": Surprisal(), "weighting": weighting, "filters": [RandomFilter(0.5, seed=3)]}
    run = fit(tiny_model, facts_file, data={**data, "micro_batch_size": 6}, trainer={"max_epochs": 3})
    module = run.module
    weights, used = module.data.prepared.weights, module.loss_weights.used()
    assert len(run.facts) == 3
    kept = module.data.prepared.kept_index
    assert min(weights.start[kept]) == 0
    for row in range(12):
        expected = (weights.start[row] + weights.end[row]) / 2  # at 0, 1/2 and 1 of the training
        assert used[row] == (pytest.approx(expected, rel=1e-6) if row in kept else None)


def test_deferred_facts_have_the_mean_of_their_own_epochs(tiny_model, facts_file):
    late = {"filters": [RandomFilter(0.5, seed=3)], "deferred_from_epoch": 2, "weighting": FAR}
    module = fit(tiny_model, facts_file, data=late, trainer={"max_epochs": 3}).module
    prepared, used = module.data.prepared, module.loss_weights.used()
    late_start, _ = prepared.weights.deferred
    for row in range(12):
        early = [prepared.weights.start[row]] * 2 if prepared.is_kept[row] else []
        assert used[row] == pytest.approx(np.mean([*early, late_start[row]]), rel=1e-6)


@pytest.mark.parametrize("step", [2, 3, 4])  # within the first epoch, at its end, within the second
@pytest.mark.parametrize("kind", ["scheduled", "interference over online"])
def test_a_resumed_run_has_the_same_means_to_the_last_bit(tiny_model, facts_file, tmp_path, kind, step):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == step and not trainer.is_last_batch:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    settings = settings_of(kind)
    whole = fit(tiny_model, facts_file, **{**settings, "callbacks": [*settings["callbacks"], Save()]})
    resumed = fit(tiny_model, facts_file, **settings_of(kind), ckpt_path=str(tmp_path / "half.ckpt"))
    assert resumed.module.loss_weights.used() == whole.module.loss_weights.used()
