"""The kinds of charts, as descriptions: what is shown, in which words and colours. Page and PNG draw from the same."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Color = Literal["blue", "orange", "grey", "purple", "green", "sand"]

PALETTE: dict[Color, str] = {
    "blue": "#2f6fb4", "orange": "#e08a2c", "grey": "#8a8f98", "purple": "#b0569a", "green": "#3f9b7f",
    "sand": "#c9b458",
}  # fmt: skip
"""Blue and orange differ in every common kind of colour blindness; the other colours differ in lightness too. The
page's style sheet has a class of each name, with another shade in the dark."""

OTHERS: tuple[Color, ...] = ("orange", "grey", "purple", "green", "sand")
"""Colours beside blue, which is for kept facts."""


@dataclass(frozen=True)
class Series:
    """Numbers that belong together, in one colour.

    Attributes:
        label: Its name.
        values: One number per place of the horizontal axis; None is "not measured".
        color: Its colour.
    """

    label: str
    values: tuple[float | None, ...]
    color: Color

    @property
    def measured(self) -> list[float]:
        """The values that were measured."""
        return [value for value in self.values if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class LineChart:
    """Lines over epochs or steps; an unmeasured point leaves a gap.

    Attributes:
        title: What it shows.
        note: What a reader must know of it; a sentence or two.
        x: Places on the horizontal axis.
        x_label: What the horizontal axis counts.
        y_label: What the vertical axis measures.
        series: The lines.
        is_share: Whether the values are shares in [0, 1], shown in per cent.
        has_legend: Whether the lines are named beside the chart.
        least_points: Measured points of a line from which on it is worth drawing.
    """

    title: str
    note: str
    x: tuple[int, ...]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_share: bool = False
    has_legend: bool = True
    least_points: int = 1

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to draw."""
        return any(len(one.measured) >= self.least_points for one in self.series)

    @property
    def legend(self) -> list[tuple[str, Color, int | None]]:
        """Label, colour and no count of each line."""
        return [(one.label, one.color, None) for one in self.series] if self.has_legend else []


@dataclass(frozen=True)
class Histogram:
    """Numbers of facts by bin, stacked by what the filters did with them.

    Attributes:
        title: What it shows.
        note: What a reader must know of it.
        x_label: What the facts are counted by.
        y_label: What is counted.
        edges: Bin edges, float64 `(bins + 1,)`; empty where nothing was measured.
        series: Facts per bin, `(bins,)`, from the bottom up.
    """

    title: str
    note: str
    x_label: str
    y_label: str
    edges: NDArray[np.float64]
    series: tuple[Series, ...]

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.series)

    @property
    def legend(self) -> list[tuple[str, Color, int | None]]:
        """Label, colour and number of facts of each series."""
        return [(one.label, one.color, int(sum(one.measured))) for one in self.series]


@dataclass(frozen=True)
class BeforeAfterRow:
    """A share in [0, 1] under the base model and after training; None is "not measured".

    Attributes:
        label: What the share is.
        facts: Which facts it is of.
        before: Under the base model.
        after: After training.
        color: Of its marks.
    """

    label: str
    facts: str
    before: float | None
    after: float | None
    color: Color


@dataclass(frozen=True)
class BeforeAfterChart:
    """Shares before (ring) and after (dot) training, a row each.

    Attributes:
        title: What it shows.
        note: What a reader must know of it.
        x_label: What the shares are of.
        rows: The rows, from the top down.
    """

    title: str
    note: str
    x_label: str
    rows: tuple[BeforeAfterRow, ...]

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to draw."""
        return any(row.before is not None or row.after is not None for row in self.rows)

    @property
    def legend(self) -> list[tuple[str, Color, int | None]]:
        """None: the rows have their names beside them."""
        return []


@dataclass(frozen=True)
class HeatMap:
    """Gradient cosines between facts, ordered by relation, sampled evenly where there are too many.

    Attributes:
        title: What it shows.
        note: What a reader must know of it.
        cosine: `(k, k)`, NaN where not measured; below 0 (orange) is conflict, above (blue) transfer.
        fact_index: `fact_index` of each row, int64 `(k,)`.
        blocks: Relation, first row and number of rows of each run of facts of one relation.
        limit: Cosine at which the colour scale saturates.
        num_measured: Facts in the whole matrix.
    """

    title: str
    note: str
    cosine: NDArray[np.float64]
    fact_index: NDArray[np.int64]
    blocks: tuple[tuple[str, int, int], ...]
    limit: float
    num_measured: int

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to draw."""
        return bool(len(self.fact_index))


Chart = LineChart | Histogram | BeforeAfterChart | HeatMap


def measured_series(series: Iterable[Series]) -> tuple[Series, ...]:
    """Those that hold any number."""
    return tuple(one for one in series if one.measured)
