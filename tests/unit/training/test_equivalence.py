"""However a run is cut up, padded or watched: one trajectory of loss, gradient norm and adapter.

Twelve facts in optimizer steps of eight, so that each epoch ends in a partial window; the weights run from 1 to 12.
The same over several processes: tests/distributed/test_world_size.py.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_semantic_peft.callbacks import InterferenceMonitor
from lit_semantic_peft.data import loaders
from lit_semantic_peft.data import module as data_module
from lit_semantic_peft.data.samplers import StepPlan
from lit_semantic_peft.semantics import ConfidenceGate, Remoteness, SemanticDistanceTerm, TokenDistance
from lit_semantic_peft.tokens import IGNORE_INDEX, collate

from fixtures.training import Ramp, assert_same_trajectory, fit_ramped

NORMALIZATIONS = ["step_weights", "step_count"]
SGD = {"optimizer": partial(torch.optim.SGD, lr=1e-2)}


@pytest.fixture(scope="module")
def reference(tiny_model, tmp_path_factory):
    """Steps of 8 × 1 with each normalisation and optimizer, each run once."""
    runs = {}

    def of(facts_file, **model):
        key = repr(model)
        if key not in runs:
            runs[key] = fit_ramped(tiny_model, facts_file, micro_batch_size=8, model=model)
        return runs[key]

    return of


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_micro_batch_and_accumulation(reference, tiny_model, facts_file, micro_batch_size, accumulate, normalization):
    whole = reference(facts_file, normalization=normalization)
    assert len(whole.losses) == 4
    cut = fit_ramped(
        tiny_model,
        facts_file,
        micro_batch_size=micro_batch_size,
        accumulate=accumulate,
        model={"normalization": normalization},
    )
    assert_same_trajectory(whole, cut)


def test_the_plain_gradient_is_the_same_too(reference, tiny_model, facts_file):
    """Under SGD a wrong factor of the gradient shows in the adapter; AdamW hides it."""
    cut = fit_ramped(tiny_model, facts_file, micro_batch_size=1, accumulate=8, model=SGD)
    assert_same_trajectory(reference(facts_file, **SGD), cut)


@pytest.mark.parametrize(
    "token_weighting", [ConfidenceGate(0.01), TokenDistance(Remoteness(4.0)), SemanticDistanceTerm(2.0)]
)
def test_token_weights(tiny_model, facts_file, token_weighting):
    """At a rate at which some tokens are learned, so that gates close."""

    def run(accumulate, token_weighting):
        return fit_ramped(
            tiny_model,
            facts_file,
            micro_batch_size=8 // accumulate,
            accumulate=accumulate,
            model={"optimizer": partial(torch.optim.AdamW, lr=3e-2)},
            data={"token_weighting": token_weighting},
            trainer={"max_epochs": 5},
        )

    whole = run(1, token_weighting)
    assert_same_trajectory(whole, run(4, token_weighting), tolerance=1e-4)
    with pytest.raises(AssertionError):
        assert_same_trajectory(whole, run(1, None), tolerance=1e-3)


def test_the_comparison_sees_a_wrong_normalisation(reference, tiny_model, facts_file):
    """The two normalisations differ by far more than the tolerance."""
    with pytest.raises(AssertionError):
        assert_same_trajectory(reference(facts_file), reference(facts_file, normalization="step_count"))


def padded(side, extra):
    """Like `collate`, with further columns of padding on one side, and all padding there."""

    def build(rows, fact_index, pad_id, **settings):
        batch = collate(rows, fact_index, pad_id, **settings)
        fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        columns = {name: F.pad(getattr(batch, name), (0, extra), value=fill) for name, fill in fills.items()}
        if side == "left":
            shift = (columns["attention_mask"] == 0).sum(dim=1)
            at = (torch.arange(columns["labels"].shape[1]) - shift[:, None]) % columns["labels"].shape[1]
            columns = {name: value.gather(1, at) for name, value in columns.items()}
        return replace(batch, **columns)

    return build


@pytest.mark.parametrize(("side", "extra"), [("right", 7), ("left", 0), ("left", 5)])
def test_padding(reference, tiny_model, facts_file, monkeypatch, side, extra):
    monkeypatch.setattr(loaders, "collate", padded(side, extra))
    run = fit_ramped(tiny_model, facts_file, micro_batch_size=4, accumulate=2)
    (batch,) = run.data.training_batches(range(12), 12)
    assert bool((batch.attention_mask[:, 0] == 0).any()) == (side == "left")
    monkeypatch.undo()
    assert_same_trajectory(reference(facts_file), run)


def test_bucketing_at_the_same_composition_of_steps(reference, tiny_model, facts_file, monkeypatch):
    """The same facts in each step, but in a random order instead of sorted by length."""
    sorted_steps = StepPlan.steps
    changed = []

    def shuffled(self, epoch):
        generator = np.random.default_rng(epoch)
        steps = sorted_steps(self, epoch)
        mixed = [generator.permutation(step).tolist() for step in steps]
        changed.append(mixed != steps)
        return mixed

    monkeypatch.setattr(StepPlan, "steps", shuffled)
    run = fit_ramped(tiny_model, facts_file, micro_batch_size=2, accumulate=4)
    assert changed
    assert all(changed)
    assert_same_trajectory(reference(facts_file), run)


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(8, 1), (2, 4)])
def test_monitor(reference, tiny_model, facts_file, tmp_path, micro_batch_size, accumulate):
    monitor = InterferenceMonitor(num_facts=6, every_n_epochs=1)
    run = fit_ramped(
        tiny_model,
        facts_file,
        micro_batch_size=micro_batch_size,
        accumulate=accumulate,
        callbacks=[monitor],
        trainer={"default_root_dir": tmp_path / "run"},
    )
    assert len(monitor.records) == 3
    assert_same_trajectory(reference(facts_file), run)
    if accumulate == 1:  # cut up alike, it is the same run to the last bit
        assert all(torch.equal(value, run.adapter[name]) for name, value in reference(facts_file).adapter.items())


def test_gradient_checkpointing(reference, tiny_model, facts_file):
    run = fit_ramped(tiny_model, facts_file, micro_batch_size=2, accumulate=4, model={"gradient_checkpointing": True})
    assert_same_trajectory(reference(facts_file), run)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_weight_zero_is_the_fact_removed(tiny_model, facts_file, monkeypatch, normalization):
    """The same planned steps, once with facts of weight 0 in them and once without these facts."""
    settings = {"micro_batch_size": 8, "data": {"weighting": Ramp(4)}, "model": {"normalization": normalization}}
    with_zeros = fit_ramped(tiny_model, facts_file, **settings)
    weights = with_zeros.data.prepared.weights.start
    steps = StepPlan.steps

    def without(self, epoch):
        kept = [[row for row in step if weights[row] > 0] for step in steps(self, epoch)]
        assert sum(map(len, kept)) == 8
        assert all(kept)
        return kept

    monkeypatch.setattr(StepPlan, "steps", without)
    assert_same_trajectory(with_zeros, fit_ramped(tiny_model, facts_file, **settings))


def test_a_micro_batch_without_target_is_one_of_weight_zero(tiny_model, facts_file, monkeypatch):
    """Facts 0, 1 and 2, each a micro-batch of its own, lose their target; then their weight instead."""
    settings = {"micro_batch_size": 1, "accumulate": 8}

    def run(change):
        class Changed(data_module.FactBatches):
            def __getitem__(self, micro_batch):
                batch = super().__getitem__(micro_batch)
                return change(batch) if micro_batch.rows[0] < 3 else batch

        with monkeypatch.context() as patched:
            patched.setattr(data_module, "FactBatches", Changed)
            return fit_ramped(tiny_model, facts_file, **settings)

    def without_weight(batch):
        return replace(batch, loss_weight=torch.zeros_like(batch.loss_weight))

    def without_target(batch):
        return replace(without_weight(batch), labels=torch.full_like(batch.labels, IGNORE_INDEX))

    emptied = run(without_target)
    assert_same_trajectory(emptied, run(without_weight))
    with pytest.raises(AssertionError):
        assert_same_trajectory(emptied, fit_ramped(tiny_model, facts_file, **settings))
