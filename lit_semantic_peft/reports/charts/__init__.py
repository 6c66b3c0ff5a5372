"""The charts of a run: each described once, drawn as SVG for the page and by matplotlib for PNG files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lit_semantic_peft.reports.attempts import Attempts
from lit_semantic_peft.reports.charts.dimensions import dimensions_before_after
from lit_semantic_peft.reports.charts.distance import distance_histogram
from lit_semantic_peft.reports.charts.interference import heat_map, heat_map_of_run, interference_history
from lit_semantic_peft.reports.charts.kinds import Chart
from lit_semantic_peft.reports.charts.learning import loss_by_epoch, recall_before_after, recall_by_epoch
from lit_semantic_peft.reports.run_folder import RunContents


@dataclass(frozen=True)
class ChartEntry:
    """Where a chart is shown.

    Attributes:
        name: Its name.
        describe: Makes its description from a run.
        plot: The PNG file that shows it, without suffix. Charts of one file stand side by side.
        section: The section of the page that shows it.
    """

    name: str
    describe: Callable[[RunContents], Chart]
    plot: str
    section: Literal["summary", "interference", "training"]


CHARTS: tuple[ChartEntry, ...] = (
    ChartEntry("dimensions", dimensions_before_after, "dimensions", "summary"),
    ChartEntry("distance_histogram", distance_histogram, "distance_histogram", "training"),
    ChartEntry("recall_before_after", recall_before_after, "recall", "training"),
    ChartEntry("recall_by_epoch", recall_by_epoch, "learning", "training"),
    ChartEntry("loss_by_epoch", loss_by_epoch, "learning", "training"),
    ChartEntry("interference_history", interference_history, "learning", "interference"),
    ChartEntry("heat_map", heat_map_of_run, "interference", "interference"),
)
"""All charts, in the order in which a section shows them. A new one is a function that describes it and a line here."""


def describe_charts(run: RunContents, attempts: Attempts | None = None) -> dict[str, Chart]:
    """The description of every chart, by name; one that cannot be described is left out.

    Args:
        run: The run.
        attempts: Keeps the reasons.
    """
    attempts = attempts or Attempts()
    described = {
        entry.name: attempts.make(f"chart `{entry.name}`", partial(entry.describe, run), None) for entry in CHARTS
    }
    return {name: chart for name, chart in described.items() if chart is not None}


__all__ = ["CHARTS", "Chart", "ChartEntry", "describe_charts", "heat_map"]
