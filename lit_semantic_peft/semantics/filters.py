"""Which facts are trained: each filter keeps some facts and gives a reason for every fact that it drops."""

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from lit_semantic_peft.arguments import require_seed, written
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.keep import num_kept, require_keep, rows_by
from lit_semantic_peft.semantics.table import BoolArray, FloatArray, ScoredFacts

logger = logging.getLogger(__name__)

_MAX_SHOWN = 20
# Objectives of two splits that differ by less are treated as equal: rounding must not decide between them.
_TIE_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class FilterStep:
    """What one filter of a chain did.

    Attributes:
        name: Class name of the filter.
        num_given: Facts that the filters before it left.
        dropped: Facts that it dropped, by reason, the most frequent reason first.
    """

    name: str
    num_given: int
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision of a filter, or of a chain of filters, about each fact.

    Attributes:
        kept: Whether each fact is kept, bool `(n,)`.
        reason: Why a fact was dropped, one word with underscores; None for a kept fact.
        steps: What each filter of a chain did, in order; empty for a single filter.
    """

    kept: BoolArray
    reason: tuple[str | None, ...]
    steps: tuple[FilterStep, ...] = ()

    @property
    def num_kept(self) -> int:
        """Number of kept facts."""
        return int(self.kept.sum())

    def reason_counts(self) -> dict[str, int]:
        """Number of dropped facts by reason, the most frequent reason first."""
        return dict(Counter(reason for reason in self.reason if reason is not None).most_common())


class FactFilter(ABC):
    """Splits facts into kept and dropped.

    A decision depends only on the facts that the filter is given, and not on their order.
    """

    needs_strata: bool = False
    """Whether the table's `stratum` column must be filled."""

    def __repr__(self) -> str:
        return written(self)

    @abstractmethod
    def select(self, facts: ScoredFacts) -> Selection:
        """Decides about each fact.

        Args:
            facts: The scored facts.

        Returns:
            One decision per fact, in the order of `facts`.

        Raises:
            InputError: If the distances cannot be used.
        """


class NoFilter(FactFilter):
    """Keeps every fact.

    Example:
        >>> facts = ScoredFacts(("a",), ("",), np.zeros(1), np.zeros(1), np.zeros(1, dtype=bool))
        >>> NoFilter().select(facts).reason
        (None,)
    """

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        return Selection(np.ones(len(facts), dtype=np.bool_), (None,) * len(facts))


class KnownFilter(FactFilter):
    """Drops facts that the base model already knows (reason `already_known`).

    Known facts need no training. Recall before training is then 0 by construction.
    """

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        return _selection(~np.asarray(facts.is_known, dtype=np.bool_), lambda row: "already_known")


class MeanVarianceFilter(FactFilter):
    """Keeps the share of the facts whose distances have a small mean and a large variance (reason `mean_variance`).

    The kept set S minimises mean_S(d) − λ·Var_S(d) over all sets of k facts, with d standardised over the given facts
    (mean 0, standard deviation 1) and the population variance. For λ > 0 and k ≥ 2 the objective is strictly concave
    in each single distance, so an optimal set is a prefix of the smallest distances plus a suffix of the largest:
    sorting and comparing the k + 1 splits finds the exact optimum in O(n log n). For a narrow distribution the suffix
    is empty: the filter keeps just the nearest k, and logs it.

    Ties: facts are ordered by (distance, `fact_id`), and S is a prefix and a suffix of that order. Between splits of
    equal objective (to 1e-12) the one with the longer prefix is chosen, that is, with more of the near facts. If all
    distances are equal, the k smallest `fact_id` are kept. Source: our reading of Wang & Li 2024 (the abstract's
    "minimise the average semantic distance while maximising the variance").

    Args:
        keep: Share of the facts to keep, in (0, 1], k = max(1, keep·n) rounded half up in decimal; or their number, a
            whole number k ≥ 2.
        variance_weight: λ ≥ 0; 0 keeps the nearest k.

    Raises:
        InputError: If a setting is outside its range.

    Example:
        >>> distance = np.array([0.1, 0.2, 0.3, 2.0])
        >>> facts = ScoredFacts(("a", "b", "c", "d"), ("",) * 4, distance, distance, np.zeros(4, dtype=bool))
        >>> MeanVarianceFilter(keep=0.5, variance_weight=2.0).select(facts).kept.tolist()
        [True, False, False, True]
        >>> MeanVarianceFilter(keep=0.5, variance_weight=0.0).select(facts).kept.tolist()
        [True, True, False, False]
    """

    def __init__(self, keep: float = 0.75, variance_weight: float = 1.0) -> None:
        require_keep(keep)
        if not (math.isfinite(variance_weight) and variance_weight >= 0):
            raise InputError(
                f"`variance_weight` must be a finite number of at least 0, got {variance_weight!r}. "
                "0 keeps the nearest facts; larger values also keep the farthest."
            )
        self.keep = keep
        self.variance_weight = variance_weight

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        _require_finite(facts)
        kept = np.zeros(len(facts), dtype=np.bool_)
        if len(facts):
            distance = facts.distance
            order = sorted(range(len(facts)), key=lambda row: (distance[row], facts.fact_id[row]))
            size = num_kept(self.keep, len(facts))
            num_near = self._num_near(distance[order], size)
            kept[order[:num_near]] = True
            kept[order[len(order) - (size - num_near) :]] = True
        return _selection(kept, lambda row: "mean_variance")

    def _num_near(self, distance: FloatArray, num_kept: int) -> int:
        """Length of the optimal prefix.

        Args:
            distance: float64 `(n,)`, ascending.
            num_kept: k.
        """
        spread = distance[-1] - distance[0]
        if num_kept == len(distance):
            return num_kept
        if spread == 0:
            logger.warning("MeanVarianceFilter: all distances are equal; keeping the first %d by fact_id", num_kept)
            return num_kept
        # Shifting and scaling before squaring preserves small differences between distances.
        z = (distance - distance[0]) / spread
        z = (z - z.mean()) / z.std()
        near = np.arange(num_kept, -1, -1)  # length of the prefix: k, k-1, ..., 0; the suffix has the rest of k
        total = _sums_of_splits(z, near, num_kept)
        total_of_squares = _sums_of_splits(z * z, near, num_kept)
        mean = total / num_kept
        variance = np.maximum(total_of_squares / num_kept - mean * mean, 0.0)
        objective = mean - self.variance_weight * variance
        best = objective.min()
        ties = objective <= best + _TIE_TOLERANCE * max(1.0, abs(best))
        num_near = int(near[np.argmax(ties)])  # the first of equal splits has the longest prefix
        if num_near == num_kept:
            logger.info(
                "MeanVarianceFilter: keeping far facts does not lower the objective at variance_weight=%g; "
                "this is just the nearest %d of %d",
                self.variance_weight,
                num_kept,
                len(distance),
            )
        return num_near


class BandFilter(FactFilter):
    """Drops facts that are too near (reason `too_near`) or too far (reason `too_far`); the bounds themselves are kept.

    Args:
        min_distance: Smallest distance kept, in the unit of the distance.
        max_distance: Largest distance kept, in the unit of the distance.
        min_quantile: The same bound as a quantile of the facts given, in [0, 1], with linear interpolation.
        max_quantile: The same bound as a quantile of the facts given, in [0, 1], with linear interpolation.

    Raises:
        InputError: If there is no bound, two bounds on one side, or the lower bound is above the upper one.

    Example:
        >>> distance = np.array([0.1, 0.5, 1.9])
        >>> facts = ScoredFacts(("a", "b", "c"), ("",) * 3, distance, distance, np.zeros(3, dtype=bool))
        >>> BandFilter(min_distance=0.2, max_distance=1.5).select(facts).reason
        ('too_near', None, 'too_far')
    """

    def __init__(
        self,
        min_distance: float | None = None,
        max_distance: float | None = None,
        min_quantile: float | None = None,
        max_quantile: float | None = None,
    ) -> None:
        if min_distance is None and max_distance is None and min_quantile is None and max_quantile is None:
            raise InputError(
                "BandFilter: give at least one of `min_distance`, `max_distance`, `min_quantile`, `max_quantile`, "
                "or use NoFilter to keep every fact."
            )
        for side, distance, quantile in (("min", min_distance, min_quantile), ("max", max_distance, max_quantile)):
            if distance is not None and quantile is not None:
                raise InputError(
                    f"BandFilter: `{side}_distance` and `{side}_quantile` bound the same side, "
                    f"got {distance!r} and {quantile!r}. Give one of them."
                )
            if distance is not None and not math.isfinite(distance):
                raise InputError(f"`{side}_distance` must be a finite number, got {distance!r}. Leave it out instead.")
            if quantile is not None and not 0 <= quantile <= 1:
                raise InputError(f"`{side}_quantile` must be a share in [0, 1], got {quantile!r}.")
        for unit, low, high in (("distance", min_distance, max_distance), ("quantile", min_quantile, max_quantile)):
            if low is not None and high is not None and low > high:
                raise InputError(
                    f"BandFilter: `min_{unit}` {low!r} is above `max_{unit}` {high!r}, so no fact can lie between. "
                    "Swap or widen them."
                )
        self.min_distance = min_distance
        self.max_distance = max_distance
        self.min_quantile = min_quantile
        self.max_quantile = max_quantile

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        _require_finite(facts)
        if not len(facts):
            return _selection(np.zeros(0, dtype=np.bool_), lambda row: "too_near")
        low, high = self.min_distance, self.max_distance
        if self.min_quantile is not None:
            low = float(np.quantile(facts.distance, self.min_quantile))
        if self.max_quantile is not None:
            high = float(np.quantile(facts.distance, self.max_quantile))
        is_near = facts.distance < (-math.inf if low is None else low)
        is_far = facts.distance > (math.inf if high is None else high)
        return _selection(~(is_near | is_far), lambda row: "too_near" if is_near[row] else "too_far")


class RandomFilter(FactFilter):
    """Keeps a random share of the facts (reason `random`): the control for every other filter.

    Facts are ordered by a hash of the seed and their `fact_id`, and the first k are kept. So the choice depends neither
    on their order nor on their distances, and a smaller `keep` keeps a subset of a larger one.

    Args:
        keep: Share of the facts to keep, in (0, 1], k = max(1, keep·n) rounded half up in decimal; or their number, a
            whole number k ≥ 2.
        seed: Another seed gives another choice.

    Raises:
        InputError: If `keep` is neither a share nor a count.

    Example:
        >>> ids = tuple("abcdefgh")
        >>> facts = ScoredFacts(ids, ("",) * 8, np.zeros(8), np.zeros(8), np.zeros(8, dtype=bool))
        >>> RandomFilter(keep=0.5, seed=1).select(facts).num_kept
        4
    """

    def __init__(self, keep: float = 0.75, seed: int = 0) -> None:
        require_keep(keep)
        require_seed(seed)
        self.keep = keep
        self.seed = seed

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        kept = np.zeros(len(facts), dtype=np.bool_)
        if len(facts):
            order = sorted(range(len(facts)), key=lambda row: self._rank(facts.fact_id[row]))
            kept[order[: num_kept(self.keep, len(facts))]] = True
        return _selection(kept, lambda row: "random")

    def _rank(self, fact_id: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{self.seed}:{fact_id}".encode()).digest(), fact_id


class PerRelation(FactFilter):
    """Applies another filter to each relation separately. The reasons are that filter's.

    So `keep` is a share or a number of each relation's facts, and quantiles are those of the relation. Facts without a
    relation form one group. Range and cost are the inner filter's. A filter that trains a throw-away adapter trains one
    per relation. A relation without kept facts is not an error as long as another one has some.

    Args:
        filter: The filter to apply.

    Example:
        >>> distance = np.array([0.1, 0.2, 0.9, 1.0])
        >>> facts = ScoredFacts(tuple("abcd"), ("x", "x", "y", "y"), distance, distance, np.zeros(4, dtype=bool))
        >>> PerRelation(MeanVarianceFilter(keep=0.5, variance_weight=0.0)).select(facts).kept.tolist()
        [True, False, True, False]
    """

    def __init__(self, filter: FactFilter) -> None:
        self.filter = filter
        self.needs_strata = filter.needs_strata

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        kept = np.zeros(len(facts), dtype=np.bool_)
        reason: list[str | None] = [None] * len(facts)
        for group in rows_by(facts.relation).values():
            rows = np.array(group, dtype=np.intp)
            selection = self.filter.select(facts.take(rows))
            kept[rows] = selection.kept
            for row, why in zip(group, selection.reason, strict=True):
                reason[row] = why
        return Selection(kept, tuple(reason))


def apply_filters(filters: Sequence[FactFilter], facts: ScoredFacts, *, may_keep_none: bool = False) -> Selection:
    """Applies filters in order; each sees only the facts that the earlier ones left.

    Args:
        filters: The filters; none keeps every fact.
        facts: The scored facts.
        may_keep_none: Whether nothing may be left; the filters after that are given no fact.

    Returns:
        One decision per fact, with the reason of the filter that dropped it.

    Raises:
        InputError: If a distance is not finite, or nothing is left that must be.

    Example:
        >>> distance = np.array([0.1, 0.5, 1.9])
        >>> is_known = np.array([True, False, False])
        >>> facts = ScoredFacts(("a", "b", "c"), ("",) * 3, distance, distance, is_known)
        >>> apply_filters([KnownFilter(), BandFilter(max_distance=1.5)], facts).reason
        ('already_known', None, 'too_far')
    """
    _require_finite(facts)
    reason: list[str | None] = [None] * len(facts)
    rows = np.arange(len(facts), dtype=np.intp)
    steps = []
    for fact_filter in filters:
        name = type(fact_filter).__name__
        selection = fact_filter.select(facts.take(rows))
        if selection.kept.shape != rows.shape or len(selection.reason) != len(rows):
            raise ValueError(f"{name}.select gave {selection.kept.shape} decisions for {len(rows)} facts")
        for row, is_kept, why in zip(rows, selection.kept, selection.reason, strict=True):
            if not is_kept:
                reason[row] = why or name
        dropped = Counter(reason[row] or name for row in rows[~selection.kept])
        steps.append(FilterStep(name, len(rows), dict(dropped.most_common())))
        logger.info(
            "%s: %d facts in, %d out %s", name, len(rows), selection.num_kept, selection.reason_counts() or "(all kept)"
        )
        if len(rows) and selection.kept.all() and not isinstance(fact_filter, NoFilter):
            logger.warning("%s drops nothing here. Distances: %s", name, _quantiles(facts.take(rows)))
        rows = rows[selection.kept]
        if not len(rows):
            break
    kept = np.zeros(len(facts), dtype=np.bool_)
    kept[rows] = True
    result = Selection(kept, tuple(reason), tuple(steps))
    if not len(rows) and not may_keep_none:
        raise InputError(_nothing_left(filters, facts, result))
    return result


def _nothing_left(filters: Sequence[FactFilter], facts: ScoredFacts, selection: Selection) -> str:
    if not len(facts):
        return "`filters` leave no fact: they were given none. Check the facts file and its `split` fields."
    dropped = ", ".join(f"{reason} {count}" for reason, count in selection.reason_counts().items())
    chain = ", ".join(type(fact_filter).__name__ for fact_filter in filters)
    return (
        f"`filters` leave no fact: {len(facts)} facts went into [{chain}], dropped for: {dropped}. "
        f"Distances: {_quantiles(facts)}. Widen the bounds or raise `keep`. If all are already_known, the base model "
        "needs no training on them: give other facts, or leave KnownFilter out. `lit-semantic-peft score` with these "
        "settings shows each fact's distance and why it is dropped."
    )


def _quantiles(facts: ScoredFacts) -> str:
    values = np.quantile(facts.distance, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "25 %", "median", "75 %", "max")
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))


def _selection(kept: BoolArray, reason_of: Callable[[int], str]) -> Selection:
    return Selection(kept, tuple(None if is_kept else reason_of(row) for row, is_kept in enumerate(kept)))


def _require_finite(facts: ScoredFacts) -> None:
    bad = np.flatnonzero(~np.isfinite(facts.distance))
    if len(bad):
        shown = ", ".join(f"{facts.fact_id[row]!r} ({facts.distance[row]})" for row in bad[:_MAX_SHOWN])
        more = f" and {len(bad) - _MAX_SHOWN} more" if len(bad) > _MAX_SHOWN else ""
        raise InputError(
            f"`distance` must be a finite number for every fact, got {len(bad)} that are not: {shown}{more}. "
            "Score these facts again, or take them out of the file."
        )


def _sums_of_splits(values: FloatArray, near: np.ndarray[tuple[int], np.dtype[np.intp]], num_kept: int) -> FloatArray:
    """Sum of the first `near` and the last `num_kept - near` values, for each entry of `near`."""
    from_near = np.concatenate([[0.0], np.cumsum(values)])
    from_far = np.concatenate([[0.0], np.cumsum(values[::-1])])
    sums: FloatArray = from_near[near] + from_far[num_kept - near]
    return sums
