"""The plots of a run as PNG files. matplotlib is imported when a plot is drawn; `pyplot` and its state never are."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_semantic_peft.files import atomic_path
from lit_semantic_peft.reports.distances import DistanceComparison
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.summary import BeforeAfter, Summary
from lit_semantic_peft.reports.views import HeatMap, Histogram, distance_histogram, heat_map, interference_course

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue against orange is told apart in every common kind of colour blindness; drop reasons differ in lightness too.
KEPT = "#2f6fb4"
DROPPED = ("#e08a2c", "#8a8f98", "#b0569a", "#3f9b7f", "#c9b458")
CONFLICT = "#c2571a"
INK, MUTED, GRID, MISSING = "#1c2128", "#5b6470", "#e4e7eb", "#c9ced6"
_DPI = 150


def plot_distance_histogram(histogram: Histogram, distance_name: str | None = None) -> "Figure":
    """Distances under the base model, kept and dropped facts stacked.

    Args:
        histogram: The counts.
        distance_name: Name of the distance, for the axis.

    Returns:
        The figure.
    """
    figure = _figure(7.2, 3.6)
    axes = figure.add_subplot()
    widths = np.diff(histogram.edges)
    bottom = np.zeros(len(widths))
    for (label, counts), color in zip(histogram.counts.items(), (KEPT, *_repeat(DROPPED)), strict=False):
        color = color if label == "kept" or "kept" in histogram.counts else DROPPED[0]
        axes.bar(
            histogram.edges[:-1], counts, widths, bottom=bottom, align="edge",
            color=color, edgecolor="white", linewidth=0.8, label=f"{label} ({counts.sum()})",
        )  # fmt: skip
        bottom += counts
    _tidy(axes, "Distance of the facts from the base model", distance_name or "distance", "facts")
    _whole_numbers(axes.yaxis)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def plot_interference(heat: HeatMap) -> "Figure":
    """Heat map of gradient cosines, ordered by relation: orange is conflict, blue is transfer.

    Args:
        heat: The ordered matrix.

    Returns:
        The figure.
    """
    from matplotlib.colors import LinearSegmentedColormap

    figure = _figure(7.2, 6.2)
    axes = figure.add_subplot()
    colors = LinearSegmentedColormap.from_list(
        "conflict", ["#8f3d0b", "#e58b4a", "#f7f6f4", "#6fa3d6", "#1b4f8a"]
    ).with_extremes(bad=MISSING)
    size = len(heat.cosine)
    image = axes.imshow(
        np.ma.masked_invalid(heat.cosine), cmap=colors, vmin=-heat.limit, vmax=heat.limit, interpolation="nearest"
    )
    for _, start, _ in heat.blocks[1:]:
        axes.axhline(start - 0.5, color=INK, linewidth=0.6, alpha=0.5)
        axes.axvline(start - 0.5, color=INK, linewidth=0.6, alpha=0.5)
    roomy = [(name, start, count) for name, start, count in heat.blocks if count >= size / 40]
    centres = [start + (count - 1) / 2 for _, start, count in roomy]
    names = [_shorten(name or "no relation", 22) for name, _, _ in roomy]
    axes.set_yticks(centres, names, fontsize=9)
    axes.set_xticks(centres, names, fontsize=9, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    shown = f"{size} facts" if size == heat.num_measured else f"{size} of {heat.num_measured} measured facts"
    axes.set_title(f"Gradient cosine between {shown}", loc="left", fontsize=12, color=INK, pad=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, extend="both")
    bar.outline.set_visible(False)
    bar.set_label("conflict  ←   cosine   →  transfer", color=MUTED, fontsize=9)
    bar.ax.tick_params(labelsize=9, colors=MUTED, length=0)
    return figure


def plot_learning(summary: Summary) -> "Figure":
    """Recall, loss and interference over training, side by side.

    Args:
        summary: The run's numbers; a panel without numbers says so.

    Returns:
        The figure.
    """
    figure = _figure(11.0, 3.4)
    recall, loss, conflict = figure.subplots(1, 3)
    epochs = [record.epoch + 1 for record in summary.epochs]
    _lines(recall, epochs, {"": [record.recall for record in summary.epochs]}, share=True)
    _tidy(recall, "Recall of the kept facts", "epoch", "teacher-forced")
    series = {
        "training loss": [record.loss for record in summary.epochs],
        "NLL after the epoch": [record.val_nll for record in summary.epochs],
    }
    _lines(loss, epochs, series)
    _tidy(loss, "Loss", "epoch", "nats per token")
    loss.set_ylim(bottom=0)
    course = interference_course(summary.interference)
    shares = {} if course is None else {name: list(values) for name, values in course.shares.items()}
    x = [] if course is None else list(course.x)
    _lines(conflict, x, shares, share=True, colors=(CONFLICT, DROPPED[1], DROPPED[2]))
    _tidy(conflict, "Interference", "epochs trained" if course is None else course.x_label, "share")
    return figure


def plot_recall(summary: Summary) -> "Figure":
    """Recall before and after, kept and dropped facts, teacher-forced and generated.

    Args:
        summary: The run's numbers.

    Returns:
        The figure.
    """
    figure = _figure(7.2, 2.9)
    axes = figure.add_subplot()
    kept, dropped = summary.recall.kept, summary.recall.dropped
    rows: list[tuple[str, BeforeAfter, str]] = [
        ("kept, generated", kept.generated, KEPT),
        ("kept, teacher-forced", kept.teacher_forced, KEPT),
        ("dropped, generated", dropped.generated, DROPPED[0]),
        ("dropped, teacher-forced", dropped.teacher_forced, DROPPED[0]),
    ]
    for height, (_, share, color) in enumerate(rows):
        if share.before is None or share.after is None:
            axes.annotate("not measured", (0.01, height), color=MUTED, fontsize=9, va="center")
            continue
        axes.plot([share.before, share.after], [height, height], color=color, linewidth=2.5, alpha=0.45, zorder=1)
        axes.scatter([share.before], [height], s=56, facecolor="white", edgecolor=color, linewidth=2, zorder=2)
        axes.scatter([share.after], [height], s=64, color=color, zorder=3)
        axes.annotate(
            f"{100 * share.after:.0f} %", (share.after, height), (0, 9), textcoords="offset points",
            ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlim(-0.03, 1.05)
    _tidy(axes, "Exact recall before (○) and after (●) training", "share of facts", "")
    _as_percent(axes.xaxis)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure


def plot_distances(comparison: DistanceComparison) -> "Figure":
    """Rank correlations of the distances and, of a finished run, how well each predicted what was learned.

    Args:
        comparison: What `score` found.

    Returns:
        The figure.
    """
    names, size = comparison.names, len(comparison.names)
    figure = _figure(12.0 if comparison.predicts else 7.2, 1.6 + 0.7 * size)
    axes, *others = figure.subplots(1, 2 if comparison.predicts else 1, squeeze=False)[0]
    axes.imshow(np.ma.masked_invalid(comparison.rank_correlation), cmap="RdBu", vmin=-1, vmax=1, alpha=0.75)
    for (row, column), value in np.ndenumerate(comparison.rank_correlation):
        axes.annotate("–" if math.isnan(value) else f"{value:.2f}", (column, row), ha="center", va="center", color=INK)
    _tidy(axes, "Rank correlation of the distances", "", "")
    axes.set_xticks(range(size), names, rotation=20, ha="right")
    axes.set_yticks(range(size), names)
    axes.grid(visible=False)
    for panel in others:
        for shift, (outcome, color) in enumerate(zip(comparison.predicts or {}, (KEPT, CONFLICT), strict=False)):
            for name, one in (comparison.predicts or {})[outcome].items():
                height = names.index(name) + 0.12 * (2 * shift - 1)
                label = outcome if name == names[0] else None
                panel.plot([one.low, one.high], [height, height], color=color, linewidth=2, alpha=0.5)
                panel.scatter([one.auroc], [height], color=color, s=40, label=label, zorder=3)
        panel.axvline(0.5, color=MUTED, linewidth=1, linestyle="--")
        panel.set_yticks(range(size), names)
        panel.set_ylim(size - 0.5, -0.5)
        panel.set_xlim(0, 1)
        _tidy(panel, "What predicts that a fact is learned", "AUROC with 95 % interval; 0.5: nothing", "")
        panel.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def write_plots(folder: str | os.PathLike[str] | RunFolder) -> list[Path]:
    """Draws every plot for which the run folder has numbers.

    Args:
        folder: The run folder.

    Returns:
        The files written, under `plots/`. The same numbers give the same bytes with the same matplotlib.

    Raises:
        InputError: The fact table or the summary is missing or unreadable.
    """
    folder = RunFolder(folder)
    facts, summary = folder.read_facts(), folder.read_summary()
    figures: dict[str, Figure] = {}
    if (histogram := distance_histogram(facts)) is not None:
        figures["distance_histogram.png"] = plot_distance_histogram(histogram, summary.distance_name)
    matrix = folder.read_interference() if folder.interference.is_file() else None
    if matrix is not None and len(matrix.fact_index):
        figures["interference.png"] = plot_interference(heat_map(matrix, facts))
    if summary.epochs or summary.interference:
        figures["learning.png"] = plot_learning(summary)
    figures["recall.png"] = plot_recall(summary)
    written = []
    for name, figure in figures.items():
        _save(figure, folder.plots / name)
        written.append(folder.plots / name)
    return written


def write_distance_plot(folder: RunFolder, comparison: DistanceComparison) -> Path:
    """Draws `plot_distances` into the folder's `plots/`.

    Args:
        folder: Where to.
        comparison: What `score` found.

    Returns:
        The file.
    """
    path = folder.plots / "distances.png"
    _save(plot_distances(comparison), path)
    return path


def _save(figure: "Figure", path: Path) -> None:
    with atomic_path(path) as temporary:
        # Without `Software` the bytes do not depend on matplotlib's version string.
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(x_label, color=MUTED, fontsize=9)
    axes.set_ylabel(y_label, color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(GRID)


def _lines(
    axes: Any,
    x: list[int],
    series: dict[str, list[float | None]],
    *,
    share: bool = False,
    colors: tuple[str, ...] = (KEPT, DROPPED[0]),
) -> None:
    """Draws lines that are labelled where they end; an unmeasured point leaves a gap."""
    measured = {label: values for label, values in series.items() if any(value is not None for value in values)}
    if not measured:
        axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED, fontsize=9)
    for (label, values), color in zip(measured.items(), colors, strict=False):
        heights = [math.nan if value is None else value for value in values]
        axes.plot(x, heights, color=color, linewidth=2, marker="o", markersize=4, label=label or None)
    if any(measured):
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _whole_numbers(axes.xaxis)
    if share:
        highest = max((v for values in measured.values() for v in values if v is not None), default=1.0)
        axes.set_ylim(0, 1.02 if highest > 0.5 else max(0.05, 1.35 * highest))
        _as_percent(axes.yaxis)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _as_percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))


def _repeat(colors: tuple[str, ...]) -> tuple[str, ...]:
    return colors * 4


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
