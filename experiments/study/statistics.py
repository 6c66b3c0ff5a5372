"""How sure a difference is: bootstrap over facts and seeds at once, corrected for the number of comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

FloatArray = NDArray[np.float64]

RESAMPLES = 10_000
_CONFIDENCE = 0.95

Kind = Literal["number", "share", "difference of shares"]


@dataclass(frozen=True)
class Sample:
    """A mean over facts and seeds, and the same mean over resampled facts and seeds.

    Attributes:
        value: The mean.
        draws: The resampled means, float64 `(RESAMPLES,)`.
        num_facts: Facts with a value.
        num_seeds: Seeds.
        kind: Whether it is a mean of yes and no, or of differences of such.
    """

    value: float
    draws: FloatArray
    num_facts: int
    num_seeds: int
    kind: Kind = "number"

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
        low, high = np.nanquantile(self.draws, [miss / 2, 1 - miss / 2])
        return float(low), float(high)

    @cached_property
    def p_value(self) -> float:
        """Two-sided: how often the resampled means lie on the other side of 0; at least 2/(RESAMPLES + 1)."""
        beyond = min(int((~(self.draws > 0)).sum()), int((~(self.draws < 0)).sum()))  # not known: on either side
        return min(1.0, 2 * (1 + beyond) / (len(self.draws) + 1))

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
    values would call them independent. The part of the interval that seeds make up ends at the range of the few seeds:
    with five, and the variances of this study, simulated intervals of 95 % cover 92 to 98 %. The same `seed` and shape
    give the same resamples, so differences of samples are paired.

    Args:
        values: float64 `(seeds, facts)`, NaN where not measured.
        mask: Which values count; all where None.
        clusters: Of each fact; where given, whole clusters are drawn too. With few clusters this is rough.
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
    num_seeds, num_facts = values.shape
    seeds, facts = _resamples(seed, num_seeds, num_facts)
    if clusters is not None:
        names, cluster = np.unique(np.array(clusters), return_inverse=True)
        facts = facts * _resamples(seed, 1, len(names))[1][:, cluster]
    total, weight = np.split(facts @ np.concatenate([filled, counts]).T, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (seeds * total).sum(axis=1) / (seeds * weight).sum(axis=1)
    return Sample(
        float(filled.sum() / counts.sum()),
        draws,
        int(counts.any(axis=0).sum()),
        int(counts.any(axis=1).sum()),
        kind,
    )


@lru_cache(maxsize=8)
def _resamples(seed: int, num_seeds: int, num_facts: int) -> tuple[FloatArray, FloatArray]:
    """How often each seed and each fact is drawn, float64 `(RESAMPLES, seeds)` and `(RESAMPLES, facts)`."""
    generator = np.random.default_rng((seed, num_seeds, num_facts))
    seeds, facts = (
        generator.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)
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
    seeds, facts = _resamples(seed, num_seeds, num_facts)
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


def rank_correlation(left: FloatArray, right: FloatArray, seed: int = 0, resamples: int = 2000) -> Sample:
    """Spearman's correlation over facts, mean over seeds, with resampled facts and seeds.

    Args:
        left: float64 `(seeds, facts)`.
        right: float64 `(seeds, facts)`; facts with a NaN in any of both are left out.
        seed: Of the resampling.
        resamples: How many.
    """
    known = ~(np.isnan(left) | np.isnan(right)).any(axis=0)
    left, right = left[:, known], right[:, known]
    num_seeds, num_facts = left.shape
    generator = np.random.default_rng(seed)
    facts = generator.integers(num_facts, size=(resamples, num_facts))
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), resamples)
    by_seed = np.stack([_spearman(left[row][facts], right[row][facts]) for row in range(num_seeds)], axis=1)
    value = float(np.mean([_spearman(left[row][None], right[row][None])[0] for row in range(num_seeds)]))
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


def _spearman(left: FloatArray, right: FloatArray) -> FloatArray:
    """Of each row; 0 where one side is constant."""
    left, right = rankdata(left, axis=1), rankdata(right, axis=1)
    left, right = left - left.mean(axis=1, keepdims=True), right - right.mean(axis=1, keepdims=True)
    norm = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    found: FloatArray = np.divide((left * right).sum(axis=1), norm, out=np.zeros(len(norm)), where=norm > 0)
    return found
