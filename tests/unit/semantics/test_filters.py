import dataclasses
import itertools
import logging
import time

import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.filters import (
    BandFilter,
    FactFilter,
    FilterStep,
    KnownFilter,
    MeanVarianceFilter,
    NoFilter,
    PerRelation,
    RandomFilter,
    Selection,
    apply_filters,
)
from lit_semantic_peft.semantics.strata import STRATA, StrataFilter
from lit_semantic_peft.semantics.table import ScoredFacts


def scored(distance, fact_id=None, is_known=None):
    distance = np.asarray(distance, dtype=np.float64)
    n = len(distance)
    return ScoredFacts(
        fact_id=tuple(fact_id) if fact_id is not None else tuple(f"f{row:06d}" for row in range(n)),
        relation=("",) * n,
        distance=distance,
        base_nll=np.ones(n),
        is_known=np.zeros(n, dtype=bool) if is_known is None else np.asarray(is_known, dtype=bool),
    )


def kept_ids(selection, facts):
    return {facts.fact_id[row] for row in np.flatnonzero(selection.kept)}


def objective(z, rows, variance_weight):
    return z[rows].mean() - variance_weight * z[rows].var()


ALL_FILTERS = [
    NoFilter(),
    KnownFilter(),
    MeanVarianceFilter(0.4, 1.0),
    MeanVarianceFilter(0.4, 5.0),
    MeanVarianceFilter(0.4, 0.0),
    BandFilter(min_distance=0.2, max_quantile=0.9),
    RandomFilter(0.4, seed=3),
    PerRelation(MeanVarianceFilter(0.4, 1.0)),
]


@pytest.mark.parametrize("fact_filter", ALL_FILTERS, ids=lambda f: type(f).__name__)
def test_order_of_facts_changes_no_kept_set(fact_filter):
    rng = np.random.default_rng(0)
    distance = np.round(rng.uniform(0, 2, 60), 1)  # many ties
    facts = scored(distance, is_known=rng.random(60) < 0.2)
    expected = kept_ids(fact_filter.select(facts), facts)
    for _ in range(10):
        shuffled = facts.take(rng.permutation(60))
        selection = fact_filter.select(shuffled)
        assert kept_ids(selection, shuffled) == expected
        assert [reason is None for reason in selection.reason] == selection.kept.tolist()


def test_mean_variance_equals_brute_force_over_all_subsets():
    rng = np.random.default_rng(1)
    num_unique = 0
    for case in range(1000):
        n = int(rng.integers(1, 9))
        kind = case % 4
        if kind == 0:
            distance = rng.uniform(0, 2, n)
        elif kind == 1:
            distance = rng.integers(0, 3, n) / 2  # ties
        elif kind == 2:
            distance = np.full(n, rng.choice([0.0, 0.1, 2.0]))  # constant
        else:
            distance = np.where(rng.random(n) < 0.3, 1.9, 0.1) + rng.normal(0, 0.01, n)
        variance_weight = float(rng.choice([0.0, 0.1, 0.5, 1.0, 3.0, 50.0]))
        keep = float(rng.uniform(0.05, 1.0))
        facts = scored(distance, fact_id=[f"id{row}" for row in rng.permutation(n)])
        selection = MeanVarianceFilter(keep, variance_weight).select(facts)
        k = max(1, int(np.floor(keep * n + 0.5)))
        assert selection.num_kept == k
        z = np.zeros(n) if np.ptp(distance) == 0 else (distance - distance.mean()) / distance.std()
        subsets = [list(rows) for rows in itertools.combinations(range(n), k)]
        values = np.array([objective(z, rows, variance_weight) for rows in subsets])
        found = objective(z, np.flatnonzero(selection.kept), variance_weight)
        assert found == pytest.approx(values.min(), abs=1e-9)
        optimal = np.flatnonzero(values <= values.min() + 1e-7)
        if len(optimal) == 1:
            num_unique += 1
            assert np.flatnonzero(selection.kept).tolist() == subsets[optimal[0]]
    assert num_unique > 300


def test_mean_variance_ties_go_by_fact_id_and_to_the_nearer():
    facts = scored([1.0, 1.0, 1.0, 1.0], fact_id="dbca")
    assert kept_ids(MeanVarianceFilter(0.5, 1.0).select(facts), facts) == {"a", "b"}
    # k = 1 has no variance, so the nearest is kept at any weight.
    symmetric = scored([0.0, 1.0, 2.0], fact_id="cab")
    assert kept_ids(MeanVarianceFilter(0.3, 9.0).select(symmetric), symmetric) == {"c"}
    # Any two of the three near ones are optimal.
    ties = scored([0.5, 0.5, 0.5, 0.9], fact_id="wxyz")
    assert kept_ids(MeanVarianceFilter(0.5, 0.0).select(ties), ties) == {"w", "x"}


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1e-9), (1e6, 1.0), (0.0, 1e9), (1.0, 1e-13)])
def test_mean_variance_does_not_depend_on_the_unit(shift, scale):
    base = np.array([0, 1, 2, 3, 40, 41, 90, 100], dtype=np.float64)
    expected = MeanVarianceFilter(0.5, 1.5).select(scored(base)).kept
    assert MeanVarianceFilter(0.5, 1.5).select(scored(shift + scale * base)).kept.tolist() == expected.tolist()
    assert expected[-1]
    assert expected[0]


def test_mean_variance_says_when_it_is_just_the_nearest(caplog):
    facts = scored(np.linspace(0, 1, 20))
    with caplog.at_level(logging.INFO):
        selection = MeanVarianceFilter(0.75, 0.1).select(facts)
    assert selection.kept.tolist() == [True] * 15 + [False] * 5
    assert "just the nearest 15 of 20" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert MeanVarianceFilter(0.5, 20.0).select(facts).kept[-1]
    assert "nearest" not in caplog.text
    with caplog.at_level(logging.INFO):
        MeanVarianceFilter(0.5).select(scored([1.0, 1.0]))
    assert "all distances are equal" in caplog.text


def test_a_hundred_thousand_facts_go_through_quickly():
    """Those that look at numbers per fact alone; what the others cost at this size is a benchmark (`scale.py`)."""
    rng = np.random.default_rng(0)
    facts = dataclasses.replace(
        scored(rng.uniform(0, 2, 100_000), is_known=rng.random(100_000) < 0.2),
        relation=tuple(f"r{number}" for number in rng.integers(0, 50, 100_000)),
        stratum=tuple(rng.choice(STRATA, 100_000)),
    )
    filters = [
        NoFilter(),
        KnownFilter(),
        BandFilter(min_quantile=0.05, max_quantile=0.95),
        StrataFilter(["MaybeKnown", "WeaklyKnown"]),
        MeanVarianceFilter(0.75, 3.0),
        PerRelation(MeanVarianceFilter(0.9, 3.0)),
        RandomFilter(0.5),
    ]
    for fact_filter in filters:
        start = time.process_time()
        selection = fact_filter.select(facts)
        assert time.process_time() - start < 5, type(fact_filter).__name__
        assert 40_000 < selection.num_kept <= 100_000
    assert apply_filters(filters, facts).num_kept > 5_000


@pytest.mark.parametrize(
    ("keep", "num_facts", "expected"),
    [
        (0.29, 50, 15),
        (0.5, 3, 2),
        (0.01, 10, 1),
        (1, 7, 7),
        (np.float64(0.75), 4, 3),
        (1e-9, 5, 1),
        (3, 7, 3),
        (9, 7, 7),
    ],
)
def test_number_of_kept_facts_is_rounded_half_up_in_decimal(keep, num_facts, expected):
    for fact_filter in (MeanVarianceFilter(keep), RandomFilter(keep)):
        assert fact_filter.select(scored(np.arange(num_facts) / 100)).num_kept == expected


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, 2.5, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [MeanVarianceFilter, RandomFilter])
def test_keep_outside_its_range_is_named(kind, keep):
    with pytest.raises(InputError, match=r"`keep` must be a share in \(0, 1\] or a whole number of at least 2"):
        kind(keep=keep)


@pytest.mark.parametrize("variance_weight", [-1.0, float("nan"), float("inf")])
def test_variance_weight_outside_its_range_is_named(variance_weight):
    with pytest.raises(InputError, match="`variance_weight`"):
        MeanVarianceFilter(variance_weight=variance_weight)


def test_band_keeps_its_bounds_and_gives_reasons():
    selection = BandFilter(min_distance=0.2, max_distance=1.0).select(scored([0.1, 0.2, 1.0, 1.1]))
    assert selection.reason == ("too_near", None, None, "too_far")
    by_quantile = BandFilter(min_quantile=0.25, max_quantile=0.75).select(scored([0, 1, 2, 3, 4]))
    assert by_quantile.kept.tolist() == [False, True, True, True, False]
    everything = BandFilter(min_quantile=0, max_quantile=1).select(scored([0.3, 0.1, 0.7]))
    assert everything.kept.all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "at least one of"),
        ({"min_distance": 1.0, "max_distance": 0.5}, "`min_distance` 1.0 is above `max_distance` 0.5"),
        ({"min_quantile": 0.9, "max_quantile": 0.1}, "`min_quantile`"),
        ({"min_distance": 0.1, "min_quantile": 0.1}, "bound the same side"),
        ({"max_quantile": 1.5}, r"in \[0, 1\]"),
        ({"min_distance": float("nan")}, "finite"),
    ],
)
def test_contradictory_bands_are_refused(settings, named):
    with pytest.raises(InputError, match=named):
        BandFilter(**settings)


def test_random_choice_depends_on_seed_and_ids_only():
    facts = scored(np.zeros(200))
    first = RandomFilter(0.5, seed=0).select(facts)
    assert first.kept.tolist() == RandomFilter(0.5, seed=0).select(scored(np.ones(200))).kept.tolist()
    assert first.kept.tolist() != RandomFilter(0.5, seed=1).select(facts).kept.tolist()
    fewer = RandomFilter(0.2, seed=0).select(facts)
    assert kept_ids(fewer, facts) < kept_ids(first, facts)
    assert set(first.reason) == {None, "random"}


def test_filters_compose_and_later_ones_see_only_what_is_left():
    facts = scored([0.0, 0.1, 0.2, 0.3, 2.0], is_known=[True, False, False, False, False])
    # The median of the four unknown ones is 0.25; of all five it would be 0.2.
    selection = apply_filters([KnownFilter(), BandFilter(max_quantile=0.5)], facts)
    assert selection.reason == ("already_known", None, None, "too_far", "too_far")
    assert selection.reason_counts() == {"too_far": 2, "already_known": 1}
    assert selection.steps == (
        FilterStep("KnownFilter", 5, {"already_known": 1}),
        FilterStep("BandFilter", 4, {"too_far": 2}),
    )
    assert apply_filters([], facts).kept.all()


def test_each_filter_logs_facts_in_and_out(caplog):
    facts = scored([0.0, 0.1, 0.2], is_known=[True, False, False])
    with caplog.at_level(logging.INFO):
        apply_filters([KnownFilter(), NoFilter()], facts)
    assert [record.getMessage() for record in caplog.records] == [
        "KnownFilter: 3 facts in, 2 out {'already_known': 1}",
        "NoFilter: 2 facts in, 2 out (all kept)",
    ]


def test_filters_that_leave_nothing_are_an_error_that_explains():
    facts = scored([0.5, 0.75, 1.0], is_known=[True, False, False])
    with pytest.raises(InputError) as error:
        apply_filters([KnownFilter(), BandFilter(max_distance=0.1), NoFilter()], facts)
    message = str(error.value)
    assert message.startswith("`filters` leave no fact: 3 facts went into [KnownFilter, BandFilter, NoFilter]")
    assert "too_far 2, already_known 1" in message
    assert "min 0.5" in message
    assert "median 0.75" in message
    with pytest.raises(InputError, match="they were given none"):
        apply_filters([KnownFilter()], scored([]))


def test_nothing_may_be_left_where_nobody_trains():
    facts = scored([0.5, 0.75, 1.0], is_known=[True, False, False])
    selection = apply_filters([KnownFilter(), BandFilter(max_distance=0.1), NoFilter()], facts, may_keep_none=True)
    assert selection.reason == ("already_known", "too_far", "too_far")
    assert selection.steps == (
        FilterStep("KnownFilter", 3, {"already_known": 1}),
        FilterStep("BandFilter", 2, {"too_far": 2}),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_distances_that_are_no_numbers_name_their_facts(value):
    facts = scored([0.1, value, 0.3], fact_id=["good", "bad", "fine"])
    for attempt in (
        lambda: apply_filters([NoFilter()], facts),
        lambda: MeanVarianceFilter().select(facts),
        lambda: BandFilter(max_distance=1.0).select(facts),
    ):
        with pytest.raises(InputError, match="'bad'") as error:
            attempt()
        assert "'good'" not in str(error.value)


def test_a_filter_with_the_wrong_number_of_decisions_is_a_bug():
    class Short(FactFilter):
        def select(self, facts):
            return Selection(np.ones(1, dtype=bool), (None,))

    with pytest.raises(ValueError, match=r"Short\.select"):
        apply_filters([Short()], scored([0.1, 0.2]))


@pytest.mark.parametrize("fact_filter", ALL_FILTERS, ids=lambda f: type(f).__name__)
def test_no_fact_and_one_fact(fact_filter):
    assert fact_filter.select(scored([])).reason == ()
    assert fact_filter.select(scored([0.5])).kept.tolist() == [True]


def test_within_each_relation_as_if_there_were_no_others():
    rng = np.random.default_rng(0)
    distance, relation = rng.uniform(0, 2, 50), rng.choice(["capital", "river", ""], 50)
    facts = dataclasses.replace(scored(distance), relation=tuple(relation))
    for inner in (MeanVarianceFilter(0.3, 2.0), RandomFilter(7), BandFilter(min_quantile=0.5)):
        selection = PerRelation(inner).select(facts)
        for name in set(relation):
            rows = np.flatnonzero(relation == name)
            alone = inner.select(facts.take(rows))
            assert selection.kept[rows].tolist() == alone.kept.tolist()
            assert tuple(selection.reason[row] for row in rows) == alone.reason
    counts = PerRelation(MeanVarianceFilter(7)).select(facts)
    assert counts.num_kept == 21


def test_a_filter_that_drops_nothing_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        apply_filters([NoFilter(), BandFilter(max_distance=1.9)], scored([0.1, 0.5, 0.9]))
    assert [record.getMessage() for record in caplog.records] == [
        "BandFilter drops nothing here. Distances: min 0.1, 25 % 0.3, median 0.5, 75 % 0.7, max 0.9"
    ]
