"""Who hurts whom: over training, and between all facts at its end."""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa

from lit_semantic_peft.interference.matrix import InterferenceMatrix
from lit_semantic_peft.reports.charts.kinds import HeatMap, LineChart, Series, measured_series
from lit_semantic_peft.reports.records import InterferenceRecord
from lit_semantic_peft.reports.run_folder import RunContents

MAX_HEAT_MAP_FACTS = 128
"""More rows than this cannot be told apart on a screen."""

_NO_MATRIX = InterferenceMatrix(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))


def interference_history(run: RunContents) -> LineChart:
    """The measurements of a run as lines over epochs, or over steps where an epoch has several.

    Args:
        run: The run.
    """
    records = run.summary.interference
    epochs = tuple(record.epoch for record in records)
    steps = tuple(record.global_step for record in records if record.global_step is not None)
    by_step = len(set(epochs)) < len(epochs) and len(steps) == len(records)
    return LineChart(
        title="Interference over training",
        note="Shares of the measured pairs and facts, at each measurement.",
        x=steps if by_step else epochs,
        x_label="optimizer steps" if by_step else "epochs trained",
        y_label="share",
        series=measured_series(
            (
                Series("pairs in conflict", tuple(record.conflict_rate for record in records), "orange"),
                Series("facts hurt on balance", tuple(one.share_net_transfer_below_0 for one in records), "grey"),
                Series(
                    "facts undone by the others",
                    tuple(one.share_net_transfer_below_minus_1 for one in records),
                    "purple",
                ),
            )
        ),
        is_share=True,
        least_points=2,  # the numbers of a single one stand in a table
    )


def worst_measurement(records: Sequence[InterferenceRecord]) -> int | None:
    """Number of the first measurement with the highest share of pairs in conflict; None where that was not measured."""
    rates = [(record.conflict_rate, -at) for at, record in enumerate(records) if record.conflict_rate is not None]
    return -max(rates)[1] if rates else None


def heat_map_of_run(run: RunContents) -> HeatMap:
    """The gradient matrix after training.

    Args:
        run: The run.
    """
    return heat_map(run.facts, run.matrix or _NO_MATRIX)


def heat_map(facts: pa.Table, matrix: InterferenceMatrix, max_facts: int = MAX_HEAT_MAP_FACTS) -> HeatMap:
    """A gradient matrix ordered by relation, at most `max_facts` rows of it, evenly over that order.

    Args:
        facts: The fact table, for the relations.
        matrix: The gradient matrix.
        max_facts: Rows to show, at most.
    """
    relation_of = dict(zip(facts.column("fact_index").to_pylist(), facts.column("relation").to_pylist(), strict=True))
    relation = [relation_of.get(int(index)) or "" for index in matrix.fact_index]
    order = sorted(range(len(relation)), key=lambda row: (relation[row], int(matrix.fact_index[row])))
    num_measured = len(order)
    if num_measured > max_facts:
        order = [order[int(position)] for position in np.linspace(0, num_measured - 1, max_facts)]
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
    sampled = f"an even sample of {len(order)} of {num_measured} measured facts"
    return HeatMap(
        title="Gradient cosine between facts",
        note=f"Ordered by relation; {sampled if len(order) < num_measured else f'{num_measured} facts'}.",
        cosine=cosine,
        fact_index=matrix.fact_index[order],
        blocks=tuple(blocks),
        limit=min(1.0, max(0.1, math.ceil(20 * limit) / 20)),
        num_measured=num_measured,
    )
