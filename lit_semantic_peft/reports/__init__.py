"""Showing a run: its folder, its tables, its plots, and one page that needs no network."""

from lit_semantic_peft.interference.matrix import InterferenceMatrix
from lit_semantic_peft.reports.compare import check_output, compare_runs, difference_table, write_comparison
from lit_semantic_peft.reports.distances import OUTCOMES, DistanceComparison, compare_distances, read_learned
from lit_semantic_peft.reports.html import build_report, render_report, try_report
from lit_semantic_peft.reports.plots import write_distance_plot, write_plots
from lit_semantic_peft.reports.records import (
    EpochRecord,
    Estimate,
    ExpertRecord,
    FormsRecord,
    GateRecord,
    InterferenceRecord,
    Manifest,
    PairsRecord,
    RetentionRecord,
    RoutingRecord,
    ScoreRecord,
    Seconds,
    Sides,
    Summary,
)
from lit_semantic_peft.reports.run_folder import RunContents, RunFolder
from lit_semantic_peft.reports.side_effects import SideEffects, measure_side_effects
from lit_semantic_peft.reports.summarize import score_records, summarize
from lit_semantic_peft.reports.tables import (
    FACT_COLUMNS,
    PROBE_COLUMNS,
    fact_table,
    merge_previous,
    without_fact_text,
    write_fact_table,
    write_interference,
    write_probe_table,
)
from lit_semantic_peft.reports.terminal import terminal_summary
from lit_semantic_peft.statistics import Discrimination

__all__ = [
    "FACT_COLUMNS",
    "OUTCOMES",
    "PROBE_COLUMNS",
    "Discrimination",
    "DistanceComparison",
    "EpochRecord",
    "Estimate",
    "ExpertRecord",
    "FormsRecord",
    "GateRecord",
    "InterferenceMatrix",
    "InterferenceRecord",
    "Manifest",
    "PairsRecord",
    "RetentionRecord",
    "RoutingRecord",
    "RunContents",
    "RunFolder",
    "ScoreRecord",
    "Seconds",
    "SideEffects",
    "Sides",
    "Summary",
    "build_report",
    "check_output",
    "compare_distances",
    "compare_runs",
    "difference_table",
    "fact_table",
    "measure_side_effects",
    "merge_previous",
    "read_learned",
    "render_report",
    "score_records",
    "summarize",
    "terminal_summary",
    "try_report",
    "without_fact_text",
    "write_comparison",
    "write_distance_plot",
    "write_fact_table",
    "write_interference",
    "write_plots",
    "write_probe_table",
]
