import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.interference import gradient_matrix
from lit_semantic_peft.semantics import InterferenceFilter, ScoringContext, WarmGradients
from lit_semantic_peft.semantics.gradients import square_root
from lit_semantic_peft.semantics.interference_filter import without_the_harmful
from lit_semantic_peft.tokens import FactEncoder, collate

from fixtures.models import byte_level_bpe, tiny_llama
from unit.semantics.tables import kept_ids, same_in_any_order, table

TARGETS = ["Paris", "Lund", "the yen", "hay fever", "Rhine", "Volga"]
FACTS = [
    Fact(f"f{row}", f"The capital of {name} is", TARGETS[row % 6])
    for row, name in enumerate(["France", "Zorvex", "Japan", "Mongolia", "Calonex", "the north", "Danube", "Volga"])
]


def greedy_by_recomputation(matrix, size, unit, only_harmful):
    """The definition, from the matrix, with no update: which facts go, in order, and what that gives the others."""
    kept, gains = list(range(len(matrix))), []
    while len(kept) > size:
        gain = {r: -sum(unit[i] * matrix[i, r] for i in kept if i != r) for r in kept}
        worst = max(kept, key=lambda r: (gain[r], -r))
        if only_harmful and gain[worst] <= 0:
            break
        gains.append(gain[worst])
        kept.remove(worst)
    return kept, gains


@pytest.mark.parametrize("progress", ["absolute", "relative", "cosine"])
@pytest.mark.parametrize("only_harmful", [True, False])
def test_updated_gains_equal_recomputation(progress, only_harmful):
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 16))
        rows = rng.normal(size=(n, int(rng.integers(1, 12)))) * rng.uniform(0.1, 10, (n, 1))
        matrix, unit = rows @ rows.T, np.ones(n)
        if progress == "relative":
            unit = 1 / np.diag(matrix)
        if progress == "cosine":
            norm = np.sqrt(np.diag(matrix))
            matrix = matrix / np.outer(norm, norm)
        size = int(rng.integers(2, n + 1))
        expected, gains = greedy_by_recomputation(matrix, size, unit, only_harmful)
        fact_filter = InterferenceFilter(keep=float(size), progress=progress, only_harmful=only_harmful)
        assert np.flatnonzero(fact_filter.select(table(np.zeros(n), feature=rows)).kept).tolist() == expected
        scale = rows if progress == "absolute" else rows / np.linalg.norm(rows, axis=1, keepdims=True)
        if progress != "relative":
            np.testing.assert_allclose(without_the_harmful(scale, scale, size, only_harmful)[1], gains, atol=1e-9)


def test_it_drops_the_aggressors_and_stops_when_none_is_left():
    rng = np.random.default_rng(1)
    rows = np.array([1.0, 0.0]) + 0.1 * rng.normal(size=(12, 2))
    rows[[3, 7]] *= -1
    selection = InterferenceFilter(keep=0.5).select(table(np.zeros(12), feature=rows))
    assert np.flatnonzero(~selection.kept).tolist() == [3, 7]
    assert set(selection.reason) == {None, "interference"}
    assert InterferenceFilter(keep=0.5, only_harmful=False).select(table(np.zeros(12), feature=rows)).num_kept == 6


def test_order_zero_gradients_and_few_facts():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(24, 6))
    rows[5] = 0.0
    rows[6] = rows[7]
    facts = table(np.zeros(24), feature=rows)
    for progress in ("absolute", "relative", "cosine"):
        assert same_in_any_order(InterferenceFilter(0.5, progress), facts)
        assert "f000005" in kept_ids(InterferenceFilter(0.5, progress), facts)  # it hurts nobody
    assert InterferenceFilter().select(table([])).reason == ()
    assert InterferenceFilter().select(table([1.0])).kept.tolist() == [True]
    with pytest.raises(InputError, match="`progress` must be one of cosine, relative, absolute"):
        InterferenceFilter(progress="fast")
    with pytest.raises(InputError, match="`warmup_steps`"):
        WarmGradients(warmup_steps=-1)


@pytest.fixture
def context():
    encoder = FactEncoder(byte_level_bpe())
    model = tiny_llama(len(encoder.tokenizer)).requires_grad_(False)
    return ScoringContext(lambda: model, encoder)


def test_rows_are_a_square_root_of_the_matrix_and_the_base_model_stays(context, monkeypatch):
    fork, forked = torch.random.fork_rng, []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=None: forked.append(devices) or fork(devices))
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    random_state = torch.get_rng_state()
    rows = WarmGradients(warmup_steps=3).measure(context, FACTS)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(devices == [] for devices in forked)  # None: the states of all GPUs, each of another process
    after = context.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in context.model.parameters())
    assert not context.model.training
    assert rows.shape == (8, 8)
    np.testing.assert_array_equal(rows, WarmGradients(warmup_steps=3).measure(context, FACTS))
    # Without a warm-up B = 0, so only the gradients of B are there: the same matrix as from a new adapter by hand.
    from lit_semantic_peft.models import attach_adapter
    from peft import LoraConfig

    rows = WarmGradients(warmup_steps=0).measure(context, FACTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = attach_adapter(context.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    batch = collate(context.encoder.encode_facts(FACTS), range(8), context.encoder.pad_id)
    np.testing.assert_allclose(rows @ rows.T, gradient_matrix(model, [batch]).numpy(), rtol=1e-4, atol=1e-6)


def test_sketch_of_gradients_is_near_the_exact_matrix(context):
    exact = WarmGradients(warmup_steps=3).measure(context, FACTS)
    sketch = WarmGradients(warmup_steps=3, max_exact=4, sketch_size=4096).measure(context, FACTS)
    assert sketch.shape == (8, 4096)
    matrix, norm = exact @ exact.T, np.linalg.norm(exact, axis=1)
    error = np.abs(sketch @ sketch.T - matrix) / np.outer(norm, norm)
    assert 0 < error.max() < 5 * np.sqrt(2 / 4096)


def test_undefined_gradients_stay_undefined():
    matrix = np.array([[2.0, np.nan, 1.0], [np.nan, np.nan, np.nan], [1.0, np.nan, 2.0]])
    rows = square_root(matrix)
    assert np.isnan(rows[1]).any()
    np.testing.assert_allclose((rows @ rows.T)[::2, ::2], matrix[::2, ::2], atol=1e-12)
