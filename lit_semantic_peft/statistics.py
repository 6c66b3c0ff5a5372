"""Bootstrap intervals (of a mean over facts, of how well a number separates two groups), and cosines of vectors."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu, spearmanr

_CONFIDENCE = 0.95
_RESAMPLES = 2000
_FEW = 1000  # up to so many values, resampling one by one takes no time
_NUMBERS_AT_ONCE = 2_000_000  # 16 MB of resampled values
_MOST_KNOWN = 1000  # intervals that are kept


def gram_cosine(gram: Any, arrays: Any) -> Any:
    """Cosines C_ij = K_ij / √(K_ii K_jj) from inner products K_ij = ⟨g_i, g_j⟩.

    Args:
        gram: K, float `(k, k)`: a NumPy array or a torch tensor.
        arrays: The module that `gram` is of, `numpy` or `torch`, so that one definition serves both.

    Returns:
        As `gram`, in [−1, 1]. NaN (not defined) where a vector is zero or an inner product is not finite.

    Example:
        >>> gram_cosine(np.array([[4.0, -2.0, 0.0], [-2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), np).tolist()
        [[1.0, -0.5, nan], [-0.5, 1.0, nan], [nan, nan, nan]]
    """
    norm = arrays.sqrt(gram.diagonal().clip(min=0))
    scale = norm[:, None] * norm[None, :]
    is_defined = (scale > 0) & arrays.isfinite(scale) & arrays.isfinite(gram)
    cosine = arrays.where(is_defined, gram, 0.0) / arrays.where(is_defined, scale, 1.0)
    return arrays.where(is_defined, cosine.clip(-1, 1), arrays.nan)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over facts and its interval: where the mean would lie for other facts of the same kind.

    Attributes:
        mean: The mean.
        low: Lower bound of the 95 % bootstrap interval.
        high: Upper bound.
        num_facts: Number of facts that are averaged.
    """

    mean: float
    low: float
    high: float
    num_facts: int


_KNOWN: dict[tuple[bytes, int], Interval] = {}
"""Intervals by content, the oldest first."""


def bootstrap_interval(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Interval | None:
    """The mean of one number per fact, with its percentile bootstrap interval over facts (95 %, 2000 resamples).

    The interval covers the choice of facts, not seeds or training runs. It is too narrow for few facts, and if all
    values are equal: 20 right answers of 20 give [1, 1].

    Args:
        values: One number per fact; paired differences for a comparison.
        seed: Seed of the resampling.

    Returns:
        Mean and interval; None if there is no value. The same values give the same interval.

    Example:
        >>> interval = bootstrap_interval([0.0, 1.0, 1.0, 1.0] * 25)
        >>> interval.mean, 0.6 < interval.low < 0.72 < 0.78 < interval.high < 0.9
        (0.75, True)
        >>> bootstrap_interval([1.0, 1.0])
        Interval(mean=1.0, low=1.0, high=1.0, num_facts=2)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        return None
    if np.ptp(numbers) == 0:
        mean = float(numbers.mean())
        return Interval(mean, mean, mean, len(numbers))
    # Logger and summary ask for the same intervals, one after the other.
    key = hashlib.sha256(numbers.tobytes()).digest(), seed
    if key not in _KNOWN:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = _resampled(numbers, seed)
    return _KNOWN[key]


def _resampled(numbers: NDArray[np.float64], seed: int) -> Interval:
    mean = float(numbers.mean())
    if len(numbers) > _FEW and np.isin(numbers, (0, 1)).all():
        # The number of ones in a resample is binomial. Resampling fact by fact would take 40 s for a million facts.
        shares = np.random.default_rng(seed).binomial(len(numbers), mean, _RESAMPLES) / len(numbers)
        low, high = np.quantile(shares, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
        return Interval(mean, float(low), float(high), len(numbers))
    return Interval(mean, *percentile_interval((numbers,), np.mean, seed), len(numbers))


def percentile_interval(
    samples: Sequence[NDArray[np.float64]], statistic: Callable[..., Any], seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (95 %, 2000 resamples of each sample), in bounded memory.

    Args:
        samples: One or more samples, resampled independently.
        statistic: Function of the samples; takes an `axis`.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound.
    """
    low, high = bootstrap(
        samples,
        statistic,
        vectorized=True,
        confidence_level=_CONFIDENCE,
        n_resamples=_RESAMPLES,
        batch=max(1, _NUMBERS_AT_ONCE // sum(map(len, samples))),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Discrimination:
    """How well a distance separates the facts that were learned from those that were not.

    Attributes:
        auroc: Area under the ROC curve: the probability that a learned fact is nearer than one that was not learned,
            ties counting half. 0.5: the distance carries no information; below 0.5: far facts are learned.
        low: Lower bound of the 95 % bootstrap interval over facts.
        high: Upper bound.
        num_learned: Facts that were learned.
        num_not_learned: Facts that were not.
    """

    auroc: float
    low: float
    high: float
    num_learned: int
    num_not_learned: int

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def discrimination(
    distance: NDArray[np.float64], is_learned: NDArray[np.bool_], seed: int = 0
) -> Discrimination | None:
    """The area under the ROC curve, with its percentile bootstrap interval (95 %, 2000 resamples of each side).

    Args:
        distance: float64 `(n,)`.
        is_learned: bool `(n,)`.
        seed: Seed of the resampling.

    Returns:
        Area and interval; None if fewer than two facts were learned, or fewer than two were not.

    Example:
        >>> found = discrimination(np.array([0.1, 0.2, 0.3, 0.9]), np.array([True, True, False, False]))
        >>> found.auroc, found.num_learned
        (1.0, 2)
    """
    near, far = distance[is_learned], distance[~is_learned]
    if min(len(near), len(far)) < 2:
        return None
    low, high = percentile_interval((near, far), _auroc, seed)
    return Discrimination(float(_auroc(near, far)), low, high, len(near), len(far))


def rank_correlation(columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of columns.

    Args:
        columns: float64 `(n,)` each, by name.

    Returns:
        float64 `(k, k)`; NaN if a column is constant or n < 2.

    Example:
        >>> rank_correlation({"a": np.array([1.0, 2.0, 3.0]), "b": np.array([9.0, 4.0, 1.0])}).round(6).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    values = list(columns.values())
    varies = [len(one) > 1 and np.ptp(one) > 0 for one in values]
    correlation = np.full((len(values), len(values)), np.nan)
    for row, left in enumerate(values):
        for column, right in enumerate(values):
            if varies[row] and varies[column]:
                correlation[row, column] = spearmanr(left, right).statistic
    return correlation


def _auroc(near: NDArray[np.float64], far: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Mann and Whitney's U as a share of all pairs."""
    pairs = near.shape[axis] * far.shape[axis]
    share: NDArray[np.float64] = mannwhitneyu(far, near, axis=axis, method="asymptotic").statistic / pairs
    return share
