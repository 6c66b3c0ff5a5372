"""How far the facts were from the base model, and what the filters did with them."""

import math

import numpy as np
from numpy.typing import NDArray

from lit_semantic_peft.reports.charts.kinds import OTHERS, Histogram, Series
from lit_semantic_peft.reports.phrases import reason_phrase
from lit_semantic_peft.reports.run_folder import RunContents


def distance_histogram(run: RunContents) -> Histogram:
    """Distances of the facts offered to the filters: kept ones, then by drop reason, most frequent first.

    Args:
        run: The run.
    """
    rows = [
        (row["distance"], row["kept"], row["drop_reason"])
        for row in run.facts.select(["distance", "kept", "drop_reason", "split"]).to_pylist()
        if row["split"] in (None, "", "inject")
    ]
    measured = [row for row in rows if row[0] is not None and math.isfinite(row[0])]
    note = "Kept and dropped facts, stacked; larger is farther."
    if measured and len(measured) < len(rows):
        note += f" {len(rows) - len(measured)} without a distance are not shown."
    distances = np.array([row[0] for row in measured], dtype=np.float64)
    labels = np.array(["kept" if row[1] is not False else reason_phrase(row[2] or "dropped") for row in measured])
    edges = _round_edges(distances)
    names = sorted(set(labels.tolist()), key=lambda label: (label != "kept", -int((labels == label).sum()), label))
    reasons = [name for name in names if name != "kept"]
    series = (
        Series(
            name,
            tuple(np.histogram(distances[labels == name], edges)[0].tolist()),
            "blue" if name == "kept" else OTHERS[reasons.index(name) % len(OTHERS)],
        )
        for name in names
    )
    return Histogram(
        title="How far the facts were from the base model",
        note=note,
        x_label=run.summary.distance_name or "distance",
        y_label="facts",
        edges=edges,
        series=tuple(series),
    )


def _round_edges(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal bins whose width is 1, 2 or 5 times a power of ten, so that the axis reads well."""
    if not len(distances):
        return distances
    low, high = float(distances.min()), float(distances.max())
    raw = max(high - low, 1e-3) / min(32, max(8, round(2 * len(distances) ** 0.5)))
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= raw)
    first = math.floor(low / width + 1e-9)
    last = max(first + 1, math.ceil(high / width - 1e-9))
    return np.arange(first, last + 1, dtype=np.float64) * np.float64(width)
