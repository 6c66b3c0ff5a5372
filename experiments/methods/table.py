"""METHODS.md, made from the JSON files alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.methods.plan import Setting, about, method_names, runs_of
from experiments.recipe_study.table import MEASURES, mean_of
from experiments.studies import markdown
from experiments.study.plan import ROOT
from experiments.study.results import ResultFolder
from experiments.study.wording import interval, number
from lit_semantic_peft.files import write_text

_MEASURES = ("recalled", "paraphrases", "known", "text_nll_delta")
_PUBLISHED = ROOT / "experiments" / "results" / "methods"


def write_table(setting: Setting) -> Path:
    """Writes the page.

    Args:
        setting: The setting.

    Returns:
        Its path: beside the results that the project shows, inside the folder of others.
    """
    path = (setting.results.parent if setting.results == _PUBLISHED else setting.results) / "METHODS.md"
    write_text(path, page(setting))
    return path


def page(setting: Setting) -> str:
    """The reported runs, and the learning rates that were tried.

    Args:
        setting: The setting.
    """
    results = ResultFolder(setting.results)
    reported, tried = [], []
    for method in method_names():
        read = [results.read(run.name) for run in runs_of(setting, [method])]
        if done := [one for one in read if one is not None and one["status"] == "done"]:
            reported.append({"method": f"`{method}`", **_row(done)})
        paths = (setting.results / "choose").glob(f"{method}-*.json")
        of_rates = [found for path in paths if (found := results.read(f"choose/{path.stem}"))]
        tried += [
            {"method": f"`{method}`", **_tried(one)}
            for one in sorted(of_rates, key=lambda one: float(one["learning_rate"]))
            if one["status"] == "done" and one["method"] == method
        ]
    lines = [
        "# Methods side by side",
        "",
        f"Made by `python -m experiments.methods table` from the JSON files. Base model {setting.base_model}; "
        f"{setting.num_facts['report']} facts that it does not know, {setting.num_steps['report']} optimizer steps of "
        f"{setting.facts_per_step} facts, AdamW at the rate of the method's type. Recall is teacher-forced. In "
        "brackets: intervals of 95 % over facts and seeds, of unrelated text over seeds alone.",
        "",
        *(markdown(reported) if reported else ["No run is finished yet."]),
        "",
    ]
    lines += [f"- `{method}`: {about(method)}." for method in method_names()]
    if tried:
        lines += [
            "",
            f"## Learning rates, on {setting.num_facts['choose']} other facts in {setting.num_steps['choose']} steps",
            "",
            *markdown(tried),
        ]
    return "\n".join(lines) + "\n"


def _row(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    cells = {}
    for measure in (MEASURES[name] for name in _MEASURES):
        value = mean_of(found, measure)
        is_change = measure.unit == "nats"
        bounds = interval(value, measure.unit, signed=is_change) if value.num_facts else ""
        shown = number(value.value, measure.unit, signed=is_change) if value.num_facts else "–"
        cells[measure.label] = f"{shown} {bounds}".strip()
    return {
        "rate": f"{found[0]['learning_rate']:g}",
        **cells,
        "parameters": f"{found[0]['num_parameters']:,}",
        "CPU seconds a step": number(median(one["step_cpu_seconds"] for one in found), "nats"),
        "GB": number(median(one["peak_memory_gb"] for one in found), "nats"),
        "seeds": str(len(found)),
    }


def _tried(found: dict[str, Any]) -> dict[str, str]:
    return {
        "rate": f"{found['learning_rate']:g}",
        "recalled before, %": number(found["recalled_before"], "%"),
        "after, %": number(found["recalled_after"], "%"),
        "nats before": number(found["nll_before"], "nats"),
        "after": number(found["nll_after"], "nats"),
    }
