"""What both the PNG plots and the page show: histogram, ordered heat map, worst conflicts. Numbers only, no drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_semantic_peft.reports.summary import InterferenceRecord, reason_phrase
from lit_semantic_peft.reports.tables import InterferenceMatrix

MAX_HEAT_MAP_FACTS = 128
"""More rows than this cannot be told apart on a screen."""


@dataclass(frozen=True)
class Histogram:
    """Distances of the facts, stacked by what the filters did with them.

    Attributes:
        edges: Bin edges, float64 `(bins + 1,)`.
        counts: Facts per bin, int64 `(bins,)`, by label: "kept" first, then the drop reasons, most frequent first.
        num_without_distance: Facts that are not in it because their distance was not measured.
    """

    edges: NDArray[np.float64]
    counts: dict[str, NDArray[np.int64]]
    num_without_distance: int


@dataclass(frozen=True)
class HeatMap:
    """Gradient cosines between facts, ordered by relation, sampled evenly where there are too many.

    Attributes:
        cosine: `(k, k)`, NaN where not measured.
        fact_index: `fact_index` of each row, int64 `(k,)`.
        blocks: Relation, first row and number of rows of each run of facts of one relation.
        limit: Cosine at which the colour scale saturates.
        num_measured: Facts in the whole matrix.
    """

    cosine: NDArray[np.float64]
    fact_index: NDArray[np.int64]
    blocks: tuple[tuple[str, int, int], ...]
    limit: float
    num_measured: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A fact and the fact that hurts it most.

    Attributes:
        victim: Row of the fact table.
        aggressor: Row of the fact table.
        cosine: Cosine of their gradients; None where the matrix is not there.
        undone: −w_j K_ij / (w_i K_ii): share of the victim's own step that one step of the aggressor takes back, with
            the weights of the measurement; None where it was not measured.
        net_transfer: The victim's, over all sampled facts.
    """

    victim: int
    aggressor: int
    cosine: float | None
    undone: float | None
    net_transfer: float | None


@dataclass(frozen=True)
class Course:
    """How interference went over training.

    Attributes:
        x: Place of each measurement on the axis, int.
        x_label: What the axis counts.
        shares: Values in [0, 1] by name, one per measurement; a share that was never measured is left out.
        worst: Number of the measurement with the highest share of pairs in conflict; None where that was not measured.
    """

    x: tuple[int, ...]
    x_label: str
    shares: dict[str, tuple[float | None, ...]]
    worst: int | None


def interference_course(records: Sequence[InterferenceRecord]) -> Course | None:
    """The measurements of a run as lines over epochs, or over steps where an epoch has several; None without any."""
    if not records:
        return None
    epochs = tuple(record.epoch for record in records)
    steps = tuple(record.global_step for record in records if record.global_step is not None)
    by_step = len(set(epochs)) < len(epochs) and len(steps) == len(records)
    shares = {
        "pairs in conflict": tuple(record.conflict_rate for record in records),
        "facts hurt on balance": tuple(record.share_net_transfer_below_0 for record in records),
        "facts undone by the others": tuple(record.share_net_transfer_below_minus_1 for record in records),
    }
    conflicts = [(rate, -at) for at, rate in enumerate(shares["pairs in conflict"]) if rate is not None]
    return Course(
        steps if by_step else epochs,
        "optimizer steps" if by_step else "epochs trained",
        {name: values for name, values in shares.items() if any(value is not None for value in values)},
        worst=-max(conflicts)[1] if conflicts else None,
    )


def distance_histogram(facts: pa.Table) -> Histogram | None:
    """Counts the distances of the facts that were offered to the filters; None where no distance was measured."""
    rows = [
        (row["distance"], row["kept"], row["drop_reason"])
        for row in facts.select(["distance", "kept", "drop_reason", "split"]).to_pylist()
        if row["split"] in (None, "", "inject")
    ]
    measured = [row for row in rows if row[0] is not None and math.isfinite(row[0])]
    if not measured:
        return None
    distances = np.array([row[0] for row in measured])
    low, high = float(distances.min()), float(distances.max())
    edges = _round_edges(low, high, target_bins=min(32, max(8, round(2 * len(measured) ** 0.5))))
    labels = ["kept" if kept is not False else reason_phrase(reason or "dropped") for _, kept, reason in measured]
    names = sorted(set(labels), key=lambda label: (label != "kept", -labels.count(label), label))
    labelled = np.array(labels)
    counts = {name: np.histogram(distances[labelled == name], edges)[0].astype(np.int64) for name in names}
    return Histogram(edges, counts, len(rows) - len(measured))


def heat_map(matrix: InterferenceMatrix, facts: pa.Table, max_facts: int = MAX_HEAT_MAP_FACTS) -> HeatMap:
    """Orders the matrix by relation and takes at most `max_facts` rows, evenly over that order.

    Args:
        matrix: The gradient matrix.
        facts: The fact table, for the relations.
        max_facts: Rows to show, at most.
    """
    relation_of = dict(zip(facts.column("fact_index").to_pylist(), facts.column("relation").to_pylist(), strict=True))
    relation = [relation_of.get(int(index)) or "" for index in matrix.fact_index]
    order = sorted(range(len(relation)), key=lambda row: (relation[row], int(matrix.fact_index[row])))
    if len(order) > max_facts:
        order = [order[int(position)] for position in np.linspace(0, len(order) - 1, max_facts)]
    cosine = matrix.gradient_cosine()[np.ix_(order, order)]
    off_diagonal = np.abs(cosine[~np.eye(len(order), dtype=bool)])
    off_diagonal = off_diagonal[np.isfinite(off_diagonal)]
    limit = float(np.quantile(off_diagonal, 0.98)) if len(off_diagonal) else 1.0
    blocks: list[tuple[str, int, int]] = []
    start = 0
    for name, members in groupby(relation[row] for row in order):
        count = len(list(members))
        blocks.append((name, start, count))
        start += count
    return HeatMap(
        cosine,
        matrix.fact_index[order],
        tuple(blocks),
        limit=min(1.0, max(0.1, math.ceil(20 * limit) / 20)),
        num_measured=len(matrix.fact_index),
    )


def worst_conflicts(facts: pa.Table, matrix: InterferenceMatrix | None, count: int = 12) -> list[Conflict]:
    """The facts that lose the largest share of their own step to their worst aggressor, worst first.

    Args:
        facts: The fact table; says who the worst aggressor of each fact is, and what it takes back. A table without
            `undone_by_worst` gives the order of `net_transfer`.
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


def _round_edges(low: float, high: float, target_bins: int) -> NDArray[np.float64]:
    """Equal bins whose width is 1, 2 or 5 times a power of ten, so that the axis reads well."""
    span = max(high - low, 1e-3)
    raw = span / target_bins
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= raw)
    first = math.floor(low / width + 1e-9)
    last = max(first + 1, math.ceil(high / width - 1e-9))
    return np.arange(first, last + 1, dtype=np.float64) * np.float64(width)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
