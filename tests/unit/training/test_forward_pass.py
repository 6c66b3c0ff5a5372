"""Prefix trees and retained texts beside the facts change nothing but the cost of a training."""

from functools import partial

import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import ConfidenceGate, Online, Proximity
from lit_semantic_peft.training import GradientSurgery, MaskedTarget, OwnSamples, RetainSplit
from peft import LoraConfig

from fixtures.training import (
    CONTRADICTING,
    Ramp,
    assert_same_adapter,
    assert_same_trajectory,
    build,
    fit,
    fit_ramped,
    with_retained,
)

SGD = {"optimizer": partial(torch.optim.SGD, lr=1e-2)}
FAST = {"optimizer": partial(torch.optim.SGD, lr=0.1)}  # so that the adapter leaves the base model


def passes_of(run_settings):
    """Fits, and gives the run with the shape of what each training pass ran: rows and tokens."""
    parts = build(*run_settings.pop("files"), **run_settings)
    parts.module.configure_model()
    shapes = []

    def note(module, given):
        if module.training:
            shapes.append(tuple(given[0].shape))

    parts.module.model.get_input_embeddings().register_forward_pre_hook(note)
    parts.trainer.fit(parts.module, datamodule=parts.data)
    return parts, shapes


@pytest.mark.parametrize(
    ("micro_batch_size", "accumulate", "data"),
    [
        (8, 1, {}),
        (2, 4, {"weighting": Ramp(4)}),
        (4, 2, {"token_weighting": ConfidenceGate(0.01)}),
        (8, 1, {"weighting": Online(Proximity())}),
    ],
    ids=["plain", "zeros", "tokens", "online"],
)
def test_the_trajectory_is_that_of_padded_batches(tiny_model, facts_file, micro_batch_size, accumulate, data):
    padded, packed = (
        fit_ramped(
            tiny_model,
            facts_file,
            micro_batch_size=micro_batch_size,
            accumulate=accumulate,
            data=data,
            model={"prefix_tree": tree, **SGD},
        )
        for tree in (False, True)
    )
    assert_same_trajectory(padded, packed, tolerance=2e-5)


def test_facts_that_begin_alike_and_go_on_differently(tiny_model, contradiction):
    padded, packed = (
        fit(tiny_model, contradiction, data=CONTRADICTING, model={"prefix_tree": tree, **SGD}) for tree in (False, True)
    )
    assert_same_trajectory(padded, packed, tolerance=2e-5)


def test_fewer_tokens_run(tiny_model, facts_file):
    counts = {}
    for tree in (False, None):
        _, shapes = passes_of({"files": (tiny_model, facts_file), "model": {"prefix_tree": tree}})
        counts[tree] = sum(rows * tokens for rows, tokens in shapes[-6:])
        assert (1 in {rows for rows, _ in shapes[-6:]}) == (tree is None)
    assert counts[None] < counts[False]


SOURCES = {
    "stored": [RetainSplit(30.0, batch_size=2), OwnSamples(20.0, batch_size=2, num_samples=6, length=4, top_k=20)],
    "asked each time": [RetainSplit(30.0, batch_size=2, top_k=None), MaskedTarget(5.0, batch_size=2, top_k=None)],
    "not in every step": [RetainSplit(30.0, batch_size=2, every=2)],
}


@pytest.mark.parametrize(("sources", "accumulate"), [*((name, 1) for name in SOURCES), ("stored", 2)])
def test_retained_texts_beside_the_facts_pull_as_before(tiny_model, facts_file, sources, accumulate):
    facts = with_retained(facts_file)
    # Few steps: the pull is strong (a tenth of the gradient and more), so that rounding grows from step to step.
    settings = {"trainer": {"accumulate_grad_batches": accumulate, "max_steps": 3}}
    apart, beside = (
        fit(tiny_model, facts, model={"retain": SOURCES[sources], "prefix_tree": tree, **SGD}, **settings)
        for tree in (False, True)
    )
    assert_same_trajectory(apart, beside, tolerance=5e-4)
    for left, right in zip(apart.logged, beside.logged, strict=True):
        assert left == pytest.approx(right, rel=5e-3, abs=1e-5)
    assert max(row.get("train/retain_kl", 0.0) for row in beside.logged) > 1e-3


def test_a_step_with_retained_texts_is_one_pass(tiny_model, facts_file):
    facts = with_retained(facts_file)
    steps = {}
    for tree in (False, True):
        model = {"retain": [RetainSplit(batch_size=2)], "prefix_tree": tree}
        parts, shapes = passes_of({"files": (tiny_model, facts), "model": model, "trainer": {"max_steps": 3}})
        steps[tree] = [shape for shape in shapes if not tree or shape[0] == 1][-3:]
        assert parts.trainer.global_step == 3
    assert all(rows == 4 for rows, _ in steps[False])
    assert all(rows == 1 for rows, _ in steps[True])


def test_where_no_fact_counts_retained_texts_still_pull(tiny_model, facts_file):
    facts = with_retained(facts_file)
    settings = {"data": {"weighting": Ramp(6), "micro_batch_size": 1}, "trainer": {"max_steps": 6}}
    apart, beside = (
        fit(
            tiny_model,
            facts,
            # Heavy, but no heavier: from 30 on steps overshoot, and a difference in rounding grows tenfold in six.
            model={"retain": [RetainSplit(8.0, batch_size=1)], "prefix_tree": tree, **SGD},
            **settings,
        )
        for tree in (False, True)
    )
    assert_same_adapter(apart.module, beside.module, tolerance=1e-4)
    for left, right in zip(apart.logged, beside.logged, strict=True):
        assert left["train/retain_kl"] == pytest.approx(right["train/retain_kl"], rel=5e-3, abs=1e-5)
    assert max(row["train/retain_kl"] for row in beside.logged) > 1e-4


def test_a_replaced_gradient_keeps_the_penalty(tiny_model, facts_file):
    facts = with_retained(facts_file)
    apart, beside = (
        fit(
            tiny_model,
            facts,
            model={"retain": [RetainSplit(30.0, batch_size=1)], "prefix_tree": tree, **FAST},
            callbacks=[GradientSurgery(groups="fact", unit_norm=True)],
            trainer={"max_steps": 3},
        )
        for tree in (False, True)
    )
    assert_same_adapter(apart.module, beside.module)


def test_it_is_used_only_where_it_is_known_to_be_exact(tiny_model, facts_file, caplog):
    dropout = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    one_step = {"trainer": {"max_steps": 1}}
    with pytest.raises(InputError, match="`prefix_tree: true` cannot be used with this model: the self-check found"):
        fit(tiny_model, facts_file, model={"peft_config": dropout, "prefix_tree": True}, **one_step)
    caplog.set_level("INFO")
    fit(tiny_model, facts_file, model={"peft_config": dropout}, **one_step)
    assert "do not run as prefix trees: the self-check found" in caplog.text
    caplog.clear()
    fit(tiny_model, facts_file, data={"self_check": False}, **one_step)
    assert "no self-check has shown that it is exact" in caplog.text
    caplog.clear()
    fit(tiny_model, facts_file, data={"self_check": False}, model={"prefix_tree": True}, **one_step)
    assert "do not run as prefix trees" not in caplog.text
