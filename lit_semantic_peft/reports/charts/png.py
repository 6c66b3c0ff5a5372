"""Charts drawn by matplotlib, which is imported when a chart is drawn; `pyplot` and its state never are."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_semantic_peft.files import atomic_path, mark
from lit_semantic_peft.reports.charts.kinds import (
    PALETTE,
    BeforeAfterChart,
    Chart,
    HeatMap,
    Histogram,
    LineChart,
)
from lit_semantic_peft.reports.phrases import cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, MISSING = "#1c2128", "#5b6470", "#e4e7eb", "#c9ced6"
PLOT = "plot"
"""The kind of its files."""
_DPI = 150
_SIZE: dict[type, tuple[float, float]] = {  # inches, one chart
    LineChart: (11.0 / 3, 3.4), Histogram: (7.2, 3.6), BeforeAfterChart: (7.2, 2.9), HeatMap: (7.2, 6.2),
}  # fmt: skip


@contextmanager
def verbatim_text() -> Iterator[None]:
    """Within it a figure shows every text as it is: a `$` in the name of a relation begins no formula.

    What the font lacks is a box; a warning for each such character, which holds it, would help nobody.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@verbatim_text()
def draw_figure(charts: Sequence[Chart]) -> "Figure":
    """Charts side by side; one without numbers shows "not measured".

    Args:
        charts: The descriptions.

    Returns:
        The figure.
    """
    sizes = [_SIZE[type(chart)] for chart in charts]
    figure = new_figure(sum(width for width, _ in sizes), max(height for _, height in sizes))
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        if not chart.is_measured:
            axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            tidy(axes, chart.title, "", "")
        elif isinstance(chart, Histogram):
            _histogram(axes, chart)
        elif isinstance(chart, LineChart):
            _lines(axes, chart)
        elif isinstance(chart, BeforeAfterChart):
            _before_after(axes, chart)
        else:
            _heat_map(axes, chart)
    return figure


@verbatim_text()
def save_png(figure: "Figure", path: Path) -> None:
    """Writes a figure, atomically; the same figure gives the same bytes with the same matplotlib.

    Args:
        figure: The figure.
        path: The file.
    """
    with atomic_path(path, PLOT) as temporary:
        # Matplotlib's own `Software` would make the bytes depend on its version.
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": mark(PLOT)})


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Gives axes their title, labels, and a quiet frame and grid.

    Args:
        axes: matplotlib's axes.
        title: What they show.
        x_label: What the horizontal axis measures.
        y_label: What the vertical axis measures.
    """
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(x_label, color=MUTED, fontsize=9)
    axes.set_ylabel(y_label, color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(GRID)


def _histogram(axes: Any, chart: Histogram) -> None:
    widths = np.diff(chart.edges)
    bottom = np.zeros(len(widths))
    for one, (label, _, total) in zip(chart.series, chart.legend, strict=True):
        axes.bar(
            chart.edges[:-1], one.values, widths, bottom=bottom, align="edge",
            color=PALETTE[one.color], edgecolor="white", linewidth=0.8, label=f"{label} ({total})",
        )  # fmt: skip
        bottom += one.measured
    tidy(axes, chart.title, chart.x_label, chart.y_label)
    _whole_numbers(axes.yaxis)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _lines(axes: Any, chart: LineChart) -> None:
    for one in chart.series:
        heights = [math.nan if value is None else value for value in one.values]
        axes.plot(chart.x, heights, color=PALETTE[one.color], linewidth=2, marker="o", markersize=4, label=one.label)
    if chart.legend:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _whole_numbers(axes.xaxis)
    if chart.is_share:
        highest = max(value for one in chart.series for value in one.measured)
        axes.set_ylim(0, 1.02 if highest > 0.5 else max(0.05, 1.35 * highest))
        _as_percent(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    tidy(axes, chart.title, chart.x_label, chart.y_label)


def _before_after(axes: Any, chart: BeforeAfterChart) -> None:
    for height, row in enumerate(chart.rows):
        color = PALETTE[row.color]
        if row.before is None and row.after is None:
            axes.annotate("not measured", (0.01, height), color=MUTED, fontsize=9, va="center")
        if row.before is not None and row.after is not None:
            axes.plot([row.before, row.after], [height, height], color=color, linewidth=2.5, alpha=0.45, zorder=1)
        if row.before is not None:
            axes.scatter([row.before], [height], s=56, facecolor="white", edgecolor=color, linewidth=2, zorder=2)
        if row.after is not None:
            axes.scatter([row.after], [height], s=64, color=color, zorder=3)
            axes.annotate(
                f"{100 * row.after:.0f} %", (row.after, height), (0, 9), textcoords="offset points",
                ha="center", fontsize=9, color=INK,
            )  # fmt: skip
    axes.set_yticks(range(len(chart.rows)), [f"{row.label}\n{row.facts}" for row in chart.rows])
    axes.set_ylim(len(chart.rows) - 0.5, -0.7)
    axes.set_xlim(-0.03, 1.05)
    tidy(axes, chart.title, chart.x_label, "")
    _as_percent(axes.xaxis)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def _heat_map(axes: Any, chart: HeatMap) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list(
        "conflict", ["#8f3d0b", "#e58b4a", "#f7f6f4", "#6fa3d6", "#1b4f8a"]
    ).with_extremes(bad=MISSING)
    size = len(chart.cosine)
    image = axes.imshow(
        np.ma.masked_invalid(chart.cosine), cmap=colors, vmin=-chart.limit, vmax=chart.limit, interpolation="nearest"
    )
    for _, start, _ in chart.blocks[1:]:
        axes.axhline(start - 0.5, color=INK, linewidth=0.6, alpha=0.5)
        axes.axvline(start - 0.5, color=INK, linewidth=0.6, alpha=0.5)
    roomy = [(name, start, count) for name, start, count in chart.blocks if count >= size / 40]
    centres = [start + (count - 1) / 2 for _, start, count in roomy]
    names = [cut(name or "no relation", 22) for name, _, _ in roomy]
    axes.set_yticks(centres, names, fontsize=9)
    axes.set_xticks(centres, names, fontsize=9, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{chart.title}\n{chart.note}", loc="left", fontsize=12, color=INK, pad=10)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, extend="both")
    bar.outline.set_visible(False)
    bar.set_label("conflict  ←   cosine   →  transfer", color=MUTED, fontsize=9)
    bar.ax.tick_params(labelsize=9, colors=MUTED, length=0)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _as_percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
