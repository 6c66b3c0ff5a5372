"""The tables of the recipe's page in the docs: a column for each way, means alone, made from the JSON files."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from experiments.recipe_study.execute import plain_rate
from experiments.recipe_study.passages import Role
from experiments.recipe_study.plan import FactKind, Model, Setting, runs_of
from experiments.recipe_study.table import MEASURES, RECIPE, Measure, Results, finished, mean_of
from experiments.studies import markdown, with_section
from experiments.study.plan import ROOT
from experiments.study.results import ResultFolder
from lit_semantic_peft.facts import given_facts
from lit_semantic_peft.files import write_text

PAGE = ROOT / "docs" / "recipe.md"

CHOSEN = ("plain", "recipe", "half_scaled_back")
"""Ways of the first table: on the facts by which the recipe was chosen."""

OF_SUBJECTS = Measure("known_of_subjects", "facts of taught subjects kept")
"""Asked where the adapter is routed: there it acts on them."""

COMPARED = ("plain", "recipe")
"""Ways of the tables of the reported facts, and whose recall is told by relation."""


def mark(section: str) -> str:
    """What stands before a section of the page."""
    return f"<!-- {section}: made by `python -m experiments.recipe_study table`; not to be edited. -->"


def write_overview(setting: Setting) -> None:
    """Exchanges the tables of the docs' page.

    Args:
        setting: The setting.
    """
    text = PAGE.read_text(encoding="utf-8")
    for section, lines in sections(setting).items():
        text = with_section(text, "\n".join(lines) + "\n", mark(section))
    write_text(PAGE, text)


def sections(setting: Setting) -> dict[str, list[str]]:
    """The lines of each section of the page, by its name.

    Args:
        setting: The setting.
    """
    return {
        "chosen": _table(_chosen(setting)),
        "reworded": _reworded(setting, "choose"),
        "reworded, reported": _reworded(setting, "report"),
        "reported": _table(_reported(setting, "real")),
        "by relation": _relations(setting),
        "beside the recipe": _beside(setting),
        "invented": _table(_reported(setting, "invented")),
        "routed": _routed(setting),
    }


def _chosen(setting: Setting) -> dict[str, Results]:
    """The run of each way on the real facts that choose; of plain training the one at the rate that was chosen."""
    results = ResultFolder(setting.results)
    found: dict[str, Results] = {}
    for model in setting.models:
        of_plain = next(run for run in runs_of(setting, "report") if run.model == model and not run.way.is_recipe)
        rate = plain_rate(of_plain, setting, results)
        for run in runs_of(setting, "choose"):
            is_shown = run.model == model and run.kind == "real" and run.way.name in CHOSEN
            one = results.read(run.name) if is_shown and run.learning_rate in (None, rate) else None
            if one is not None and one["status"] == "done":
                found[_column(model, run.way.name)] = [one]
    return found


def _reworded(setting: Setting, role: Role) -> list[str]:
    """What was found on the facts of a role, asked in more wordings: a row for each way."""
    results = ResultFolder(setting.results)
    by_way: dict[str, list[Mapping[str, Any]]] = {}
    for run in (run for run in runs_of(setting, role) if run.kind == "reworded"):
        found = results.read(run.name)
        if found is not None and found["status"] == "done":
            by_way.setdefault(_column(run.model, run.way.name.removeprefix("reworded_")), []).append(found)
    seeds = {name: {"seeds": str(len(found))} if role == "report" else {} for name, found in by_way.items()}
    rows = [
        {"": name, **seeds[name], **{one.label: _cell(found, one) for one in (*MEASURES.values(), OF_SUBJECTS)}}
        for name, found in by_way.items()
    ]
    return markdown(rows) if rows else ["No run is finished yet."]


def _reported(setting: Setting, kind: FactKind) -> dict[str, Results]:
    return {
        _column(model, way): found
        for model in setting.models
        for way in COMPARED
        if (found := finished(setting, model, kind, way))
    }


def _column(model: Model, way: str) -> str:
    return f"{model.name}, `{way}`"


def _table(columns: Mapping[str, Results]) -> list[str]:
    """A row for each measure, a column for each way."""
    if not columns:
        return ["No run is finished yet."]
    rows = [{"": "seeds", **{name: str(len(found)) for name, found in columns.items()}}]
    rows += [
        {"": measure.label, **{name: _cell(found, measure) for name, found in columns.items()}}
        for measure in MEASURES.values()
    ]
    return markdown(rows)


def _relations(setting: Setting) -> list[str]:
    """Recall in held-out words and as questions, by relation of the reported real facts."""
    relations = {fact.id: fact.relation or "" for fact in given_facts("world")}
    rows = []
    for model in setting.models:
        ways = {way: finished(setting, model, "real", way) for way in COMPARED}
        if not all(ways.values()):
            continue
        ids = ways[COMPARED[0]][0]["fact_id"]
        for relation in dict.fromkeys(relations[one] for one in ids):
            cells = {
                f"{label}, `{way}`": f"{100 * _mean_of_relation(found, name, relation, relations):.0f} %"
                for name, label in (("paraphrases", "in held-out words"), ("questions", "as questions"))
                for way, found in ways.items()
            }
            number = sum(relations[one] == relation for one in ids)
            rows.append({"": f"{model.name}: {relation}", "facts": str(number), **cells})
    return markdown(rows) if rows else ["No run is finished yet."]


def _beside(setting: Setting) -> list[str]:
    """What other ways give on the reported real facts minus the recipe, over the seeds that both have."""
    rows = []
    for model in setting.models:
        recipe = finished(setting, model, "real", RECIPE)
        for way in (name for name, one in setting.ways.items() if name not in COMPARED and not one.is_routed):
            found = finished(setting, model, "real", way)
            seeds = {one["seed"] for one in found} & {one["seed"] for one in recipe}
            if not seeds:
                continue
            ours, theirs = ([one for one in runs if one["seed"] in seeds] for runs in (found, recipe))
            cells = {}
            for measure in MEASURES.values():
                value = mean_of(ours, measure).value - mean_of(theirs, measure).value
                cells[measure.label] = f"{100 * value:+.0f}" if measure.unit == "%" else f"{value:+.2f}"
            rows.append({"": _column(model, way), "seeds": str(len(seeds)), **cells})
    return markdown(rows) if rows else ["No run is finished yet."]


def _routed(setting: Setting) -> list[str]:
    """Ways whose adapter acts on some prompts only, beside the recipe, with what was known of the taught subjects."""
    shown = [one for name, one in MEASURES.items() if name != "neighbours"]  # none of which names a taught subject
    shown.insert(-1, OF_SUBJECTS)
    rows = []
    for model in setting.models:
        for kind in setting.num_facts:
            ways = [name for name, way in setting.ways.items() if way.is_routed]
            ways = [way for way in ways if finished(setting, model, kind, way)]
            for way in [RECIPE, *ways] if ways else []:
                found = finished(setting, model, kind, way)
                cells = {one.label: _cell(found, one) for one in shown}
                rows.append({"": f"{model.name}, {kind}: `{way}`", "seeds": str(len(found)), **cells})
    return markdown(rows) if rows else ["No run is finished yet."]


def _cell(found: Results, measure: Measure) -> str:
    value = mean_of([one for one in found if one.get(measure.name)], measure).value
    if math.isnan(value):
        return "–"
    return f"{100 * value:.0f} %" if measure.unit == "%" else f"{value:+.2f}".replace("-", "−")


def _mean_of_relation(found: Results, name: str, relation: str, relations: Mapping[str, str]) -> float:
    values = [
        value
        for one in found
        for fact_id, value in zip(one["fact_id"], one[name], strict=True)
        if value is not None and relations[fact_id] == relation
    ]
    return fmean(values) if values else math.nan
