"""Which facts lose most to which other facts, as numbers."""

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from lit_semantic_peft.interference.matrix import InterferenceMatrix


@dataclass(frozen=True, slots=True)
class Conflict:
    """A fact and the fact that hurts it most.

    Attributes:
        victim: Row of the fact table.
        aggressor: Row of the fact table.
        cosine: Cosine of their gradients; None without a matrix.
        undone: −w_j K_ij / (w_i K_ii): share of the victim's own step that one step of the aggressor takes back, with
            the weights of the measurement; None where it was not measured.
        net_transfer: The victim's, over all sampled facts.
    """

    victim: int
    aggressor: int
    cosine: float | None
    undone: float | None
    net_transfer: float | None


def worst_conflicts(facts: pa.Table, matrix: InterferenceMatrix | None, count: int = 12) -> list[Conflict]:
    """The facts that lose the largest share of their own step to their worst aggressor, worst first.

    Args:
        facts: The fact table, with the worst aggressor of each fact, and what it takes back. A table without
            `undone_by_worst` is ordered by `net_transfer`.
        matrix: The gradient matrix, for the cosine of each pair.
        count: Number of conflicts, at most.
    """
    names = ["fact_id", "fact_index", "worst_aggressor", "net_transfer", "undone_by_worst"]
    columns = facts.select(names).to_pydict()
    row_of = {fact_id: row for row, fact_id in enumerate(columns["fact_id"])}
    place_of: dict[int, int] = {}
    cosine: NDArray[Any] | None = None
    if matrix is not None:
        place_of = {int(index): place for place, index in enumerate(matrix.fact_index)}
        cosine = matrix.gradient_cosine()
    conflicts = []
    for victim, aggressor_id in enumerate(columns["worst_aggressor"]):
        aggressor = row_of.get(aggressor_id)
        if aggressor is None:
            continue
        pair_cosine = None
        i, j = (place_of.get(columns["fact_index"][row], -1) for row in (victim, aggressor))
        if cosine is not None and i >= 0 and j >= 0:
            pair_cosine = _finite(cosine[i, j])
        undone = columns["undone_by_worst"][victim]
        conflicts.append(Conflict(victim, aggressor, pair_cosine, undone, columns["net_transfer"][victim]))
    conflicts = [item for item in conflicts if item.undone is None or item.undone > 0]

    def severity(conflict: Conflict) -> tuple[float, float]:
        net = conflict.net_transfer if conflict.net_transfer is not None else math.inf
        return (-(conflict.undone or 0.0), net)

    return sorted(conflicts, key=severity)[:count]


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
