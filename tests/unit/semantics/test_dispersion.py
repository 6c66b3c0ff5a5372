import itertools
import logging

import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import DispersionFilter, MeanVarianceFilter

from unit.semantics.tables import kept_ids, same_in_any_order, table


def objective(distance, embedding, rows, weight):
    """mean_S(d) − λ·tr Cov_S(e) of subsets (one a row), with d and e standardised over all facts."""
    z = (distance - distance.mean()) / (distance.std() or 1.0)
    e = embedding - embedding.mean(axis=0)
    e = e / (np.sqrt((e**2).sum(axis=1).mean()) or 1.0)
    return z[rows].mean(axis=1) - weight * e[rows].var(axis=1).sum(axis=1)


def test_gap_to_brute_force_over_a_thousand_small_cases():
    rng = np.random.default_rng(0)
    gaps = []
    for case in range(1000):
        n = int(rng.integers(4, 10))
        size = int(rng.integers(2, n))
        weight = float(rng.choice([0.1, 0.5, 1.0, 3.0, 10.0]))
        distance = rng.uniform(0, 2, n) if case % 2 else rng.integers(0, 3, n) / 2
        embedding = rng.normal(size=(n, int(rng.integers(1, 6))))
        facts = table(distance, feature=embedding)
        chosen = DispersionFilter(keep=size, dispersion_weight=weight).select(facts).kept
        assert chosen.sum() == size
        subsets = np.array(list(itertools.combinations(range(n), size)))
        of_chosen = objective(distance, embedding, np.flatnonzero(chosen)[None], weight)[0]
        gaps.append(of_chosen - objective(distance, embedding, subsets, weight).min())
    gaps = np.array(gaps)
    assert gaps.min() > -1e-9
    assert (gaps < 1e-9).mean() > 0.98  # what the docstring says, with some room for another BLAS
    assert gaps.max() < 0.5


@pytest.mark.parametrize("constant", [False, True])
def test_without_weight_it_is_exactly_the_nearest(constant):
    rng = np.random.default_rng(1)
    for _ in range(100):
        n = int(rng.integers(1, 30))
        distance = np.full(n, 0.5) if constant else rng.integers(0, 5, n) / 4
        facts = table(distance, fact_id=[f"id{row}" for row in rng.permutation(n)], feature=rng.normal(size=(n, 3)))
        nearest = MeanVarianceFilter(0.6, variance_weight=0.0)
        assert kept_ids(DispersionFilter(0.6, 0.0), facts) == kept_ids(nearest, facts)


def test_identical_targets_leave_only_the_distance():
    facts = table([0.4, 0.1, 0.3, 0.2], feature=np.ones((4, 5)))
    assert DispersionFilter(0.5, 7.0).select(facts).kept.tolist() == [False, True, False, True]


def test_order_of_facts_changes_nothing():
    rng = np.random.default_rng(2)
    embedding = np.repeat(rng.normal(size=(20, 4)), 3, axis=0)  # duplicates
    facts = table(np.round(rng.uniform(0, 2, 60), 1), feature=embedding)
    assert same_in_any_order(DispersionFilter(0.4, 2.0), facts)


def test_the_bound_in_the_log_is_met(caplog):
    rng = np.random.default_rng(3)
    facts = table(rng.uniform(0, 2, 300), feature=rng.normal(size=(300, 8)))
    with caplog.at_level(logging.INFO):
        DispersionFilter(0.5, 2.0).select(facts)
    value, _, size, bound = caplog.records[-1].args
    assert size == 150
    assert bound <= value <= bound + 0.01


def test_few_facts_and_bad_settings():
    assert DispersionFilter().select(table([], feature=np.zeros((0, 2)))).reason == ()
    assert DispersionFilter().select(table([0.3])).kept.tolist() == [True]
    for weight in (-1.0, float("nan")):
        with pytest.raises(InputError, match="`dispersion_weight`"):
            DispersionFilter(dispersion_weight=weight)
    with pytest.raises(InputError, match="`keep`"):
        DispersionFilter(keep=1.5)
    with pytest.raises(ValueError, match="TargetEmbedding cannot be measured"):
        DispersionFilter().select(table([0.1, 0.2, 0.3, 0.4]))
