"""Drops the facts that interfere most with the others."""

import logging
import math
from typing import Literal, get_args

import numpy as np
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.features import in_order_of_ids
from lit_semantic_peft.semantics.filters import FactFilter, Selection
from lit_semantic_peft.semantics.gradients import WarmGradients
from lit_semantic_peft.semantics.keep import num_kept, require_keep
from lit_semantic_peft.semantics.table import BoolArray, FloatArray, ScoredFacts

logger = logging.getLogger(__name__)

Progress = Literal["cosine", "relative", "absolute"]


class InterferenceFilter(FactFilter):
    """Drops, one by one, the fact whose removal most raises the others' predicted progress (reason `interference`).

    To first order a step on the facts S improves fact i by Σ_{j∈S} K_ij (see `WarmGradients`). So without fact r the
    others gain

        gain_r = −Σ_{i∈S, i≠r} K_ir · s_i,

    where 1/s_i is the unit of fact i's progress: s_i = 1 (`absolute`); s_i = 1/K_ii (`relative`: its effect on itself,
    the unit of `net_transfer`); or gradients are scaled to unit length, so that K is the cosine (`cosine`, the default:
    gradient norms of facts differ by a factor of ten, and this gives all facts the same influence). After each removal
    the gains are updated exactly, in O(n · columns). Ties are broken by `fact_id`. The search is greedy: the joint
    effect of two facts only shows after one of them is removed.

    With `only_harmful` it stops when no removal helps the others, so fewer facts than asked for may be dropped.

    Source: ours; the first-order effect of one fact on another as in TracIn (Pruthi et al. 2020, arXiv 2002.08484).
    Range of the gain: any number; above 0 the others are better off without the fact. Cost: `WarmGradients`.

    Args:
        keep: Share of the facts to keep, in (0, 1], or their number (≥ 2).
        progress: The unit of progress.
        only_harmful: Whether to drop only facts with a gain above 0.
        gradients: The warm-up and the measurement of K; None: with default settings.

    Raises:
        InputError: If a setting is out of its range.

    Example:
        >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [0.0, 1.0]])  # the third pulls against the first two
        >>> facts = ScoredFacts(tuple("abcd"), ("",) * 4, np.zeros(4), np.zeros(4), np.zeros(4, dtype=bool),
        ...     measure=lambda feature, fact_id: rows)
        >>> InterferenceFilter(keep=3).select(facts).reason
        (None, None, 'interference', None)
    """

    def __init__(
        self,
        keep: float = 0.75,
        progress: Progress = "cosine",
        only_harmful: bool = True,
        gradients: WarmGradients | None = None,
    ) -> None:
        require_keep(keep)
        if progress not in get_args(Progress):
            raise InputError(f"`progress` must be one of {', '.join(get_args(Progress))}, got {progress!r}")
        self.keep = keep
        self.progress: Progress = progress
        self.only_harmful = only_harmful
        self.gradients = gradients or WarmGradients()

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        kept = np.ones(len(facts), dtype=np.bool_)
        size = num_kept(self.keep, len(facts)) if len(facts) else 0
        if size < len(facts):
            order = in_order_of_ids(facts.fact_id)
            rows = facts.feature(self.gradients)[order]
            is_kept, gains = without_the_harmful(*_given_and_taken(rows, self.progress), size, self.only_harmful)
            kept[order] = is_kept
            logger.info(
                "InterferenceFilter: the dropped facts' gains sum to %.3g; the gain of the last one is %.3g",
                sum(gains), gains[-1] if gains else math.nan,
            )  # fmt: skip
        return Selection(kept, tuple(None if is_kept else "interference" for is_kept in kept))


def without_the_harmful(
    receives: FloatArray, gives: FloatArray, size: int, only_harmful: bool = True
) -> tuple[BoolArray, list[float]]:
    """Removes facts greedily, with exact updates of the gains.

    Args:
        receives: a, float64 `(n, c)`: fact j moves fact i by a_i·b_j.
        gives: b, float64 `(n, c)`.
        size: Number of facts to keep.
        only_harmful: Whether to stop when no gain is above 0.

    Returns:
        Which facts are kept, bool `(n,)`, and the gain of each removal, in order.
    """
    kept = np.ones(len(receives), dtype=np.bool_)
    gain = np.einsum("ij,ij->i", receives, gives) - gives @ receives.sum(axis=0)
    gains: list[float] = []
    for _ in range(len(receives) - size):
        worst = int(np.argmax(np.where(kept, gain, -np.inf)))
        if only_harmful and gain[worst] <= 0:
            break
        gains.append(float(gain[worst]))
        kept[worst] = False
        gain += gives @ receives[worst]  # the removed fact no longer counts in the others' gains
    return kept, gains


def _given_and_taken(rows: FloatArray, progress: Progress) -> tuple[FloatArray, FloatArray]:
    """Factors a (received) and b (given) of each fact: fact j moves fact i by a_i·b_j, in the unit of progress."""
    square = np.einsum("ij,ij->i", rows, rows)
    safe = np.where(square > 0, square, 1.0)[:, None]  # a zero gradient has no effect on others, nor they on it
    if progress == "absolute":
        return rows, rows
    if progress == "relative":
        return rows / safe, rows
    unit = rows / np.sqrt(safe)
    return unit, unit
