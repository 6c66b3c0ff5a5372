import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_semantic_peft.metrics import (
    Efficacy,
    Generalization,
    Locality,
    Portability,
    Retention,
    Robustness,
    kl_from_likeliest,
    likeliest_tokens,
    target_probability,
)
from lit_semantic_peft.metrics.fact_scores import FactScore
from lit_semantic_peft.statistics import bootstrap_interval, percentile_interval

from fixtures.calls import count_calls

CLASSES = [Efficacy, Generalization, Locality, Robustness]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_part_is_the_mean_over_what_was_asked_of_a_fact(cls):
    metric = cls(num_facts=4)
    index = torch.tensor([0, 2, 2, 3])
    value = torch.tensor([1.0, 0.0, 1.0, math.nan])
    metric.update(index, **{metric.parts[-1]: value})
    result = metric.compute()
    assert list(result) == list(metric.parts)
    assert result[metric.parts[-1]].tolist()[:3] == pytest.approx([1.0, math.nan, 0.5], nan_ok=True)
    assert result[metric.parts[-1]][3].isnan(), "NaN is not measured, not wrong"
    assert result[metric.parts[0]].isnan().all()


def test_two_halves_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 5, (40,), generator=generator)
    right = torch.rand(40, generator=generator) > 0.5
    whole, left, other = (Generalization(5) for _ in range(3))
    whole.update(index, generalization=right)
    left.update(index[:13], generalization=right[:13])
    other.update(index[13:], generalization=right[13:])
    left.merge_state(other)
    assert torch.equal(left.compute()["generalization"], whole.compute()["generalization"])
    expected = [right[index == fact].double().mean().item() for fact in range(5)]
    assert whole.compute()["generalization"].tolist() == pytest.approx(expected)


def test_a_wrong_part_or_shape_is_named():
    with pytest.raises(ValueError, match="unknown part `guess`; Efficacy has efficacy, efficacy_teacher_forced"):
        Efficacy(2).update(torch.tensor([0]), guess=torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"`efficacy` and `fact_index` must have the same shape"):
        Efficacy(2).update(torch.tensor([0, 1]), efficacy=torch.tensor([1.0]))
    with pytest.raises(ValueError, match="`num_facts` must be at least 1, got 0"):
        Efficacy(0)


def test_what_follows_from_an_unlearned_fact_is_a_lucky_guess():
    metric = Portability(3)
    right = torch.tensor([True, False, True, True])
    learned = torch.tensor([True, True, False, False])
    metric.update(torch.tensor([0, 0, 1, 2]), right, ~right, learned, ~learned)
    result = {part: value.tolist() for part, value in metric.compute().items()}
    assert result["portability"] == [0.5, 0.0, 0.0]
    assert result["portability_of_learned"] == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)
    assert result["portability_teacher_forced"] == [0.0, 0.0, 0.0]
    assert result["portability_of_learned_teacher_forced"] == pytest.approx([math.nan, 0.0, 0.0], nan_ok=True)


def test_conclusions_may_be_given_on_an_accelerator(monkeypatch):
    """`meta` stands for one: like an accelerator's, its tensors do not mix with those of the processor."""
    received = {}
    monkeypatch.setattr(FactScore, "update", lambda self, fact_index, **values: received.update(values))
    index = torch.zeros(2, dtype=torch.long, device="meta")
    Portability(2).update(index, *[index.bool()] * 4)
    assert {part: value.device.type for part, value in received.items()} == dict.fromkeys(Portability.parts, "meta")
    of_learned = [received[f"portability_of_learned{form}"] for form in ("", "_teacher_forced")]
    assert [one.dtype for one in of_learned] == [torch.float64] * 2


def test_retention_weighs_texts_by_tokens_and_is_exactly_zero_where_nothing_changed():
    nll = torch.rand(7, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(1, 8)
    metric = Retention()
    metric.update(nll, nll, tokens, torch.ones(3, dtype=torch.bool))
    result = metric.compute()
    assert result["retention_nll_delta"].item() == 0
    assert result["retention_known"].item() == 1
    assert result["retention_nll_before"].item() == pytest.approx((nll.double() * tokens).sum().item() / 28)
    assert Retention().compute()["retention_nll_delta"].isnan()


def full_kl(p, q):
    p, q = F.log_softmax(p.double(), -1), F.log_softmax(q.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def test_kl_from_the_likeliest_tokens_is_a_lower_bound_that_reaches_the_divergence():
    generator = torch.Generator().manual_seed(2)
    p, q = (4 * torch.randn(20, 300, generator=generator) for _ in range(2))
    previous = torch.zeros(20, dtype=torch.float64)
    for kept in (1, 8, 64, 299):
        bound = kl_from_likeliest(*likeliest_tokens(p, kept), q)
        assert (bound >= previous - 1e-4).all(), "more tokens, nearer"
        assert (bound <= full_kl(p, q) + 1e-4).all()
        previous = bound
    torch.testing.assert_close(previous, full_kl(p, q), atol=1e-3, rtol=1e-4)
    assert (kl_from_likeliest(*likeliest_tokens(p, 8), p) == 0).all()


def test_the_probability_of_a_target_is_the_product_over_its_tokens():
    per_token = torch.tensor([0.5, 0.25, 0.8])
    nll = -per_token.log().mean()
    assert target_probability(nll[None], torch.tensor([3])).item() == pytest.approx(0.1)


def test_intervals_narrow_with_facts_and_cover_the_mean():
    generator = np.random.default_rng(0)
    few, many = (bootstrap_interval((generator.random(size) < 0.7).astype(float)) for size in (40, 4000))
    assert few.low < few.mean < few.high
    # The normal approximation, which is good here.
    half = 1.96 * math.sqrt(many.mean * (1 - many.mean) / 4000)
    assert many.high - many.mean == pytest.approx(half, rel=0.15)
    assert (few.high - few.low) > 5 * (many.high - many.low)
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.25]) == bootstrap_interval([0.25], seed=9)


def test_the_interval_of_a_share_is_that_of_any_other_mean():
    """Drawn at once as a binomial number, against resampling fact by fact."""
    flags = np.array([1.0] * 140 + [0.0] * 3860)
    share = bootstrap_interval(flags)
    low, high = percentile_interval((flags,), np.mean)
    assert (share.mean, share.num_facts) == (flags.mean(), 4000)
    assert share.low == pytest.approx(low, rel=0.02)
    assert share.high == pytest.approx(high, rel=0.02)
    _, calls = count_calls(lambda: bootstrap_interval(np.arange(1_000_000) % 2))
    assert calls < 1000, "a resample after the other takes as many and 40 s"


def test_a_95_percent_interval_covers_the_truth_about_as_often():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        interval = bootstrap_interval(generator.random(60))
        hits += interval.low <= 0.5 <= interval.high
    assert 88 <= hits <= 100
