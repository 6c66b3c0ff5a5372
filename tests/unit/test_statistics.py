import math

import numpy as np
import pytest
import torch
from lit_semantic_peft import statistics
from lit_semantic_peft.statistics import bootstrap_interval, discrimination, percentile_interval, rank_correlation
from scipy.stats import rankdata
from torchmetrics.functional.classification import binary_auroc

from fixtures.calls import count_calls


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_torchmetrics_also_with_ties(seed):
    generator = np.random.default_rng(seed)
    is_learned = generator.random(60) < 0.4
    distance = np.round(generator.random(60) - 0.3 * is_learned, 1)
    found = discrimination(distance, is_learned)
    oracle = binary_auroc(torch.from_numpy(-distance).sigmoid(), torch.from_numpy(is_learned).long())
    assert found.auroc == pytest.approx(float(oracle), abs=1e-6)
    assert found.low < found.auroc < found.high
    assert (found.num_learned, found.num_not_learned) == (is_learned.sum(), (~is_learned).sum())
    assert discrimination(distance, is_learned) == found


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Two normal distributions a standard deviation apart: the truth is Φ(1/√2) = 0.760."""
    generator = np.random.default_rng(0)
    is_learned = np.arange(60) < 30
    found = [discrimination(generator.normal(~is_learned), is_learned) for _ in range(60)]
    assert 0.85 <= np.mean([one.low <= 0.760 <= one.high for one in found]) <= 1.0


def test_one_sided_outcomes_say_nothing():
    assert discrimination(np.arange(4.0), np.array([True, True, True, False])) is None
    assert discrimination(np.arange(4.0), np.zeros(4, dtype=bool)) is None


def test_rank_correlation_is_that_of_the_ranks():
    generator = np.random.default_rng(0)
    columns = {"a": generator.random(40), "b": np.round(generator.random(40), 1), "c": np.zeros(40)}
    found = rank_correlation(columns)
    expected = np.corrcoef(rankdata(columns["a"]), rankdata(columns["b"]))
    np.testing.assert_allclose(found[:2, :2], expected, atol=1e-12)
    assert np.isnan(found[2]).all()


def test_the_same_interval_is_resampled_once(monkeypatch):
    resampled, interval = [], statistics.percentile_interval
    monkeypatch.setattr(statistics, "percentile_interval", lambda *given: resampled.append(given) or interval(*given))
    numbers = np.random.default_rng(11).random(50)
    found = [bootstrap_interval(numbers), bootstrap_interval(numbers.tolist()), bootstrap_interval(numbers[::-1])]
    assert found[0] == found[1]
    assert len(resampled) == 2, "another order is another resampling"
    assert found[0].mean == pytest.approx(found[2].mean)
    assert bootstrap_interval(numbers, seed=1) != found[0]


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
