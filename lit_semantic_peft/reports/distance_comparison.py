"""How distances agree with each other, and how well one tells what is learned from what is not."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, spearmanr

from lit_semantic_peft.intervals import percentile_interval


@dataclass(frozen=True, slots=True)
class Discrimination:
    """How well a distance tells the facts that were learned from those that were not.

    Attributes:
        auroc: Probability that a learned fact is nearer than one that was not, ties counting half: area under the ROC
            curve. 0.5: the distance says nothing; below: the far facts are learned.
        low: Lower end of the 95 % bootstrap interval over facts.
        high: Upper end.
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
        seed: Of the resampling.

    Returns:
        None where fewer than two facts were learned, or fewer than two were not.

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
    """Spearman's rank correlation of every two columns.

    Args:
        columns: float64 `(n,)` each, by name.

    Returns:
        float64 `(k, k)`; NaN where a column is constant or n < 2.

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
