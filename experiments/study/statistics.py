"""How sure a difference is: bootstrap over facts and seeds at once, corrected for the number of comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata
from scipy.stats import t as student

FloatArray = NDArray[np.float64]

RESAMPLES = 20_000
_CONFIDENCE = 0.95
_ERRORS = 2.0
"""Bounds of intervals lie so many standard errors of the resampling farther out, so no verdict hangs on its seed."""

Kind = Literal["number", "share", "difference of shares"]


@dataclass(frozen=True)
class Sample:
    """A mean over facts and seeds, and the same mean over resampled facts and seeds.

    Attributes:
        value: The mean.
        draws: The resampled means, float64 `(n,)`, n mostly `RESAMPLES`.
        num_facts: Facts with a value.
        num_seeds: Seeds.
        kind: Whether it is a mean of yes and no, or of differences of such.
        is_resampled: Whether the draws are random; else they are the quantiles of a distribution.
    """

    value: float
    draws: FloatArray
    num_facts: int
    num_seeds: int
    kind: Kind = "number"
    is_resampled: bool = True

    def interval(self, num_comparisons: int = 1) -> tuple[float, float]:
        """Percentile interval of 95 % for as many comparisons together (Bonferroni).

        All yes, all no, or no difference at all would give an interval of width 0; then it is what Wilson's interval
        over the facts says of as many alike.

        Args:
            num_comparisons: How many intervals shall all hold.
        """
        if not self.num_facts:
            return float("nan"), float("nan")
        miss = (1 - _CONFIDENCE) / num_comparisons
        is_constant = not (np.abs(self.draws - self.value) > 0).any()
        if self.kind != "number" and is_constant:
            room = float(binomtest(0, self.num_facts).proportion_ci(1 - miss, "wilson").high)
            low, high = {"share": (0.0, 1.0), "difference of shares": (-1.0, 1.0)}[self.kind]
            return max(self.value - room, low), min(self.value + room, high)
        tail = miss / 2
        tail = max(0.0, tail - self._errors * math.sqrt(tail * (1 - tail) / len(self.draws)))
        low, high = np.nanquantile(self.draws, [tail, 1 - tail], method="inverted_cdf")
        return float(low), float(high)

    @cached_property
    def p_value(self) -> float:
        """Two-sided: how often the resampled means lie on the other side of 0, with the error of the resampling."""
        beyond = min(int((~(self.draws > 0)).sum()), int((~(self.draws < 0)).sum()))  # not known: on either side
        return min(1.0, 2 * (1 + beyond + self._errors * math.sqrt(beyond)) / (len(self.draws) + 1))

    @property
    def _errors(self) -> float:
        return _ERRORS if self.is_resampled else 0.0

    def minus(self, other: "Sample") -> "Sample":
        """The difference; paired where both come from the same facts and seeds in the same order.

        Args:
            other: What to take off.
        """
        return Sample(
            self.value - other.value,
            self.draws - other.draws,
            min(self.num_facts, other.num_facts),
            min(self.num_seeds, other.num_seeds),
            "number" if "number" in (self.kind, other.kind) else "difference of shares",
        )


def sample(
    values: FloatArray,
    mask: NDArray[np.bool_] | None = None,
    *,
    clusters: Sequence[str] | None = None,
    kind: Kind = "number",
    seed: int = 0,
) -> Sample:
    """Resamples rows (seeds) and columns (facts) with replacement, crossed: a fact is drawn for all seeds alike.

    Seeds and facts are both chance, and the values of one fact under several seeds hang together; resampling single
    values would call them independent. The part of the interval that seeds make up ends at the range of the few seeds,
    so it is for measures in which facts are most of the chance, as in recall; where seeds are, `over_seeds` is for. The
    same `seed` and shape give the same resamples, so differences of samples are paired.

    Args:
        values: float64 `(seeds, facts)`, NaN where not measured.
        mask: Which values count; all where None.
        clusters: Of each fact; where given, whole clusters are drawn instead. With few clusters this is rough.
        kind: Whether the values are yes and no, or differences of such.
        seed: Of the resampling.

    Example:
        >>> found = sample(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[True, True], [False, True]]))
        >>> round(found.value, 3), found.num_facts, found.num_seeds
        (0.667, 2, 2)
    """
    counts = ~np.isnan(values) if mask is None else mask & ~np.isnan(values)
    if not counts.any():
        return Sample(float("nan"), np.full(RESAMPLES, np.nan), 0, 0)
    filled = np.where(counts, values, 0.0)
    return Sample(
        float(filled.sum() / counts.sum()),
        _draws(filled.tobytes(), counts.tobytes(), values.shape, tuple(clusters or ()), seed, RESAMPLES),
        int(counts.any(axis=0).sum()),
        int(counts.any(axis=1).sum()),
        kind,
    )


@lru_cache(maxsize=1024)  # tables, sentences and claims ask for the same means
def _draws(
    filled_bytes: bytes, counts_bytes: bytes, shape: tuple[int, int], clusters: tuple[str, ...], seed: int, count: int
) -> FloatArray:
    filled, counts = np.frombuffer(filled_bytes).reshape(shape), np.frombuffer(counts_bytes, np.bool_).reshape(shape)
    seeds, facts = _resamples(seed, *shape, count)
    if clusters:
        names, cluster = np.unique(np.array(clusters), return_inverse=True)
        facts = _resamples(seed, 1, len(names), count)[1][:, cluster]
    total = facts @ filled.T
    every = counts.all() and not clusters
    weight = np.full((1, shape[0]), float(shape[1])) if every else facts @ counts.T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws: FloatArray = (seeds * total).sum(axis=1) / (seeds * weight).sum(axis=1)
    draws.setflags(write=False)
    return draws


def over_seeds(values: FloatArray) -> Sample:
    """The mean over seeds alone, where they are nearly all of the chance: Student's t over their means.

    The draws are the quantiles of that distribution. One seed says nothing of others: from minus to plus infinity.

    Args:
        values: float64 `(seeds, facts)`, all measured.

    Example:
        >>> found = over_seeds(np.array([[1.0], [2.0], [3.0]]))
        >>> found.value, [round(end, 1) for end in found.interval()]
        (2.0, [-0.5, 4.5])
    """
    num_seeds, num_facts = values.shape
    of_seeds = values.mean(axis=1)
    places = (np.arange(RESAMPLES) + 0.5) / RESAMPLES
    if num_seeds == 1:
        draws = np.where(places < 0.5, -np.inf, np.inf)
    else:
        spread = of_seeds.std(ddof=1) / math.sqrt(num_seeds)
        draws = of_seeds.mean() + spread * student.ppf(places, num_seeds - 1)
    return Sample(float(of_seeds.mean()), draws, num_facts, num_seeds, is_resampled=False)


@lru_cache(maxsize=4)
def _resamples(seed: int, num_seeds: int, num_facts: int, count: int) -> tuple[FloatArray, FloatArray]:
    """How often each seed and each fact is drawn, float64 `(count, seeds)` and `(count, facts)`."""
    generator = np.random.default_rng((seed, num_seeds, num_facts))
    seeds, facts = (
        generator.multinomial(size, np.full(size, 1 / size), count).astype(np.float64)
        for size in (num_seeds, num_facts)
    )
    return seeds, facts


def adjusted_means(values: FloatArray, group: NDArray[np.int64], stratum: Sequence[str], seed: int = 0) -> list[Sample]:
    """Mean of each group of facts as if all groups had the same mix of strata.

    Groups that hold other strata differ by them alone (Simpson's paradox). Least squares with an effect of each group
    and of each stratum, fitted anew to every resample, compares facts of the same stratum only.

    Args:
        values: float64 `(seeds, facts)`, all measured.
        group: int64 `(facts,)`, from 0, none left out.
        stratum: Of each fact.
        seed: Of the resampling.

    Returns:
        One per group; nothing measured where no stratum ties the groups together.
    """
    num_seeds, num_facts = values.shape
    num_groups = int(group.max()) + 1
    in_group = np.eye(num_groups)[group]
    in_stratum = (np.array(stratum)[:, None] == np.unique(np.array(stratum))).astype(np.float64)
    design = np.concatenate([in_group, in_stratum], axis=1)
    width = design.shape[1]
    if np.linalg.matrix_rank(design) < width - 1:
        return [sample(np.full((1, 1), np.nan))] * num_groups
    seeds, facts = _resamples(seed, num_seeds, num_facts, RESAMPLES)
    facts = np.concatenate([np.ones((1, num_facts)), facts])  # the first row is what was measured
    mean = np.concatenate([np.ones((1, num_seeds)), seeds]) @ values / num_seeds
    gram = facts @ (design[:, :, None] * design[:, None, :]).reshape(num_facts, -1)
    effect = (
        np.linalg.pinv(gram.reshape(-1, width, width), rcond=1e-10, hermitian=True)
        @ ((facts * mean) @ design)[:, :, None]
    )
    in_groups, in_strata = effect[:, :num_groups, 0], effect[:, num_groups:, 0]
    means = in_groups + (in_strata * (facts @ in_stratum)).sum(axis=1, keepdims=True) / num_facts
    means[facts @ in_group == 0] = np.nan
    sizes = np.bincount(group)
    return [Sample(float(one[0]), one[1:], int(size), num_seeds) for one, size in zip(means.T, sizes, strict=True)]


def adjusted_trend(values: FloatArray, by: FloatArray, stratum: Sequence[str], seed: int = 0) -> Sample:
    """How much higher the fact with the largest `by` lies than the one with the smallest, of facts of one stratum.

    Slope over the ranks of `by`, from 0 to 1, by least squares with an effect of each stratum, for every resample.

    Args:
        values: float64 `(seeds, facts)`, all measured.
        by: float64 `(facts,)`.
        stratum: Of each fact.
        seed: Of the resampling.
    """
    num_seeds, num_facts = values.shape
    rank = (rankdata(by) - 1) / max(1, num_facts - 1)
    in_stratum = (np.array(stratum)[:, None] == np.unique(np.array(stratum))).astype(np.float64)
    seeds, facts = _resamples(seed, num_seeds, num_facts, RESAMPLES)
    facts = np.concatenate([np.ones((1, num_facts)), facts])  # the first row is what was measured
    mean = np.concatenate([np.ones((1, num_seeds)), seeds]) @ values / num_seeds
    weight, sum_x, sum_xx = (facts @ (in_stratum * rank[:, None] ** power) for power in range(3))
    sum_y, sum_xy = ((facts * mean) @ (in_stratum * rank[:, None] ** power) for power in range(2))
    weight = np.maximum(weight, 1.0)  # a stratum that was not drawn: all its sums are 0
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (sum_xy - sum_x * sum_y / weight).sum(axis=1) / (sum_xx - sum_x**2 / weight).sum(axis=1)
    return Sample(float(slope[0]), slope[1:], num_facts, num_seeds)


def rank_correlation(
    left: FloatArray, right: FloatArray, stratum: Sequence[str] | None = None, seed: int = 0, resamples: int = 4000
) -> Sample:
    """Spearman's correlation over facts, mean over seeds, with resampled facts and seeds.

    Args:
        left: float64 `(seeds, facts)`.
        right: float64 `(seeds, facts)`; facts with a NaN in any of both are left out.
        stratum: Of each fact; where given, ranks are compared with the mean rank of their stratum, so facts of the same
            stratum only.
        seed: Of the resampling.
        resamples: How many.
    """
    known = ~(np.isnan(left) | np.isnan(right)).any(axis=0)
    left, right = left[:, known], right[:, known]
    num_seeds, num_facts = left.shape
    group = np.zeros(num_facts, dtype=np.int64)
    if stratum is not None:
        group = np.unique(np.array(stratum)[known], return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    facts = generator.integers(num_facts, size=(resamples, num_facts))
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), resamples)
    by_seed = np.stack(
        [_spearman(left[row][facts], right[row][facts], group[facts]) for row in range(num_seeds)], axis=1
    )
    value = float(np.mean([_spearman(left[row][None], right[row][None], group[None])[0] for row in range(num_seeds)]))
    return Sample(value, (seeds * by_seed).sum(axis=1) / num_seeds, num_facts, num_seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): below α where the family's chance of any false alarm is below α.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    worst = 0.0
    for place, at in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - place) * p_values[at]))
        adjusted[at] = worst
    return [float(one) for one in adjusted]


def _spearman(left: FloatArray, right: FloatArray, group: NDArray[np.int64]) -> FloatArray:
    """Of each row, between ranks minus the mean rank of their group; 0 where one side is constant."""
    place = np.arange(len(group))[:, None] * (group.max() + 1) + group
    size = np.bincount(place.ravel())
    left, right = (
        ranks - (np.bincount(place.ravel(), ranks.ravel()) / np.maximum(size, 1))[place]
        for ranks in (rankdata(left, axis=1), rankdata(right, axis=1))
    )
    norm = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    found: FloatArray = np.divide((left * right).sum(axis=1), norm, out=np.zeros(len(norm)), where=norm > 0)
    return found
