"""How sure a difference is: bootstrap over facts and seeds at once, corrected for the number of comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.float64]

RESAMPLES = 10_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """A mean over facts and seeds, and the same mean over resampled facts and seeds.

    Attributes:
        value: The mean.
        draws: The resampled means, float64 `(RESAMPLES,)`.
        num_facts: Facts with a value.
        num_seeds: Seeds.
    """

    value: float
    draws: FloatArray
    num_facts: int
    num_seeds: int

    def interval(self, num_comparisons: int = 1) -> tuple[float, float]:
        """Percentile interval of 95 % for as many comparisons together (Bonferroni).

        Args:
            num_comparisons: How many intervals shall all hold.
        """
        if not self.num_facts:
            return float("nan"), float("nan")
        tail = (1 - _CONFIDENCE) / 2 / num_comparisons
        low, high = np.nanquantile(self.draws, [tail, 1 - tail])
        return float(low), float(high)

    @cached_property
    def p_value(self) -> float:
        """Two-sided: how often the resampled means lie on the other side of 0; at least 2/(RESAMPLES + 1)."""
        beyond = min(int((self.draws <= 0).sum()), int((self.draws >= 0).sum()))
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
        )


def sample(values: FloatArray, mask: NDArray[np.bool_] | None = None, seed: int = 0) -> Sample:
    """Resamples rows (seeds) and columns (facts) with replacement, crossed: a fact is drawn for all seeds alike.

    Seeds and facts are both chance, and the values of one fact under several seeds hang together; resampling single
    values would call them independent. With few seeds the interval is somewhat too narrow (by √(4/5) in the part that
    seeds make up, for five). The same `seed` and shape give the same resamples, so differences of samples are paired.

    Args:
        values: float64 `(seeds, facts)`, NaN where not measured.
        mask: Which values count; all where None.
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
    generator = np.random.default_rng((seed, num_seeds, num_facts))
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), RESAMPLES).astype(np.float64)
    facts = generator.multinomial(num_facts, np.full(num_facts, 1 / num_facts), RESAMPLES).astype(np.float64)
    total = np.einsum("rf,rf->r", seeds @ filled, facts)
    weight = np.einsum("rf,rf->r", seeds @ counts.astype(np.float64), facts)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = total / weight
    return Sample(
        float(filled.sum() / counts.sum()), draws, int(counts.any(axis=0).sum()), int(counts.any(axis=1).sum())
    )


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
