"""The PNG files of a run, and the plot of how distances agree."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_semantic_peft.reports.attempts import Attempts
from lit_semantic_peft.reports.charts import CHARTS, Chart
from lit_semantic_peft.reports.charts.kinds import PALETTE
from lit_semantic_peft.reports.charts.png import INK, MUTED, draw_figure, new_figure, save_png, tidy, verbatim_text
from lit_semantic_peft.reports.distances import DistanceComparison
from lit_semantic_peft.reports.run_folder import DISTANCE_PLOT, RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plots(folder: RunFolder, charts: Mapping[str, Chart], attempts: Attempts | None = None) -> list[Path]:
    """Draws every plot for which the run has numbers; one that cannot be drawn is left out.

    Args:
        folder: The run folder.
        charts: From `describe_charts`.
        attempts: Keeps the reasons.

    Returns:
        The files written. The same numbers give the same bytes with the same matplotlib.
    """
    attempts = attempts or Attempts()
    panels: dict[str, list[Chart]] = {}
    for entry in CHARTS:
        if entry.name in charts:
            panels.setdefault(entry.plot, []).append(charts[entry.name])
    written = [
        attempts.make(f"plot `{name}`", partial(_write_plot, folder.paths.plot(name), panels_of_file), None)
        for name, panels_of_file in panels.items()
        if any(chart.is_measured for chart in panels_of_file)
    ]
    return [path for path in written if path is not None]


def _write_plot(path: Path, charts: list[Chart]) -> Path:
    save_png(draw_figure(charts), path)
    return path


@verbatim_text()
def plot_distances(comparison: DistanceComparison) -> "Figure":
    """Rank correlations of the distances and, of a finished run, how well each predicted what was learned.

    Args:
        comparison: What `score` found.

    Returns:
        The figure.
    """
    names, size = comparison.names, len(comparison.names)
    figure = new_figure(12.0 if comparison.predicts else 7.2, 1.6 + 0.7 * size)
    axes, *others = figure.subplots(1, 2 if comparison.predicts else 1, squeeze=False)[0]
    axes.imshow(np.ma.masked_invalid(comparison.rank_correlation), cmap="RdBu", vmin=-1, vmax=1, alpha=0.75)
    for (row, column), value in np.ndenumerate(comparison.rank_correlation):
        axes.annotate("–" if math.isnan(value) else f"{value:.2f}", (column, row), ha="center", va="center", color=INK)
    tidy(axes, "Rank correlation of the distances", "", "")
    axes.set_xticks(range(size), names, rotation=20, ha="right")
    axes.set_yticks(range(size), names)
    axes.grid(visible=False)
    for panel in others:
        colors = (PALETTE["blue"], PALETTE["orange"])
        for shift, (outcome, color) in enumerate(zip(comparison.predicts or {}, colors, strict=False)):
            for name, one in (comparison.predicts or {})[outcome].items():
                height = names.index(name) + 0.12 * (2 * shift - 1)
                label = outcome if name == names[0] else None
                panel.plot([one.low, one.high], [height, height], color=color, linewidth=2, alpha=0.5)
                panel.scatter([one.auroc], [height], color=color, s=40, label=label, zorder=3)
        panel.axvline(0.5, color=MUTED, linewidth=1, linestyle="--")
        panel.set_yticks(range(size), names)
        panel.set_ylim(size - 0.5, -0.5)
        panel.set_xlim(0, 1)
        tidy(panel, "What predicts that a fact is learned", "AUROC with 95 % interval; 0.5: nothing", "")
        panel.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def write_distance_plot(folder: RunFolder, comparison: DistanceComparison) -> Path:
    """Draws `plot_distances` into the folder's plots.

    Args:
        folder: The run folder.
        comparison: What `score` found.

    Returns:
        The file.
    """
    path = folder.paths.plot(DISTANCE_PLOT)
    save_png(plot_distances(comparison), path)
    return path
