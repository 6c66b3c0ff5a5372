"""Runs what is missing: one training at a time through the package's own command, one JSON file for each."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from statistics import fmean, median
from typing import Any

from experiments.recipe_study.facts import facts_of, texts_of
from experiments.recipe_study.plan import PLAIN, Run, Setting, Way, config_of, runs_of
from experiments.recipe_study.recorder import FILE
from experiments.running import recorded, side_by_side, trained
from experiments.study.plan import ROOT, keyed
from experiments.study.results import ResultFolder
from lit_semantic_peft.adapters import SubjectGate
from lit_semantic_peft.facts import given_facts
from lit_semantic_peft.files import content_key, remove_leftovers
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.training.recipe import Recipe, choose_recipe

logger = logging.getLogger(__name__)

STUDY_VERSION = 1
"""Part of every run's key; raised whenever a change of the project changes what training or evaluation gives."""

WORK = ROOT / "runs" / "recipe_study"
_PACKAGES = ("torch", "transformers", "peft", "lightning")

SCORES = {
    "recalled": "efficacy_teacher_forced_after",
    "answered": "efficacy_after",
    "paraphrases": "generalization_teacher_forced_after",
    "questions": "generalization_question_teacher_forced_after",
    "reversed": "generalization_reversed_teacher_forced_after",
    "neighbours": "locality_teacher_forced",
}
"""What is kept of each taught fact, and its column in the fact table."""


@dataclass(frozen=True)
class Order:
    """A run that is ready to go.

    Attributes:
        run: The run.
        config: Its YAML as plain data.
        num_taught: The first so many facts are taught.
        depends_on: Everything that its result depends on.
        key: Content key of it.
    """

    run: Run
    config: dict[str, Any]
    num_taught: int
    depends_on: dict[str, Any]
    key: str


def order_of(run: Run, setting: Setting, rate: float | None) -> Order:
    """Finds facts and configuration of a run, and the key of its result.

    Args:
        run: The run.
        setting: The setting.
        rate: Learning rate of plain training.
    """
    facts = facts_of(
        run.kind,
        run.role,
        run.model.name,
        setting,
        WORK / "facts",
        with_forms=run.way.teaches_forms,
        of_subjects=run.way.is_routed,
    )
    texts = texts_of(run.role, WORK / "facts")
    fingerprint, num_parameters = _base(run.model.name)
    num_taught = setting.num_taught(run.kind)
    every = facts_of(run.kind, run.role, run.model.name, setting, WORK / "facts")
    adapter = (run.way.config or {}).get("model", {}).get("peft_config", setting.adapter)
    recipe = choose_recipe(
        given_facts(str(every.path))[:num_taught],
        num_parameters,
        resolve_name(adapter["class_path"])(**adapter.get("init_args", {})),
        facts_per_step=setting.facts_per_step,
        gate=_gate_of(run.way) if run.way.is_gated else None,
    )
    config = config_of(run, setting, facts.path, texts.path, recipe.num_steps, recipe.num_refining, rate)
    stated = {
        "config": json.loads(
            json.dumps(keyed(config))
            .replace(json.dumps(str(facts.path)), f'"{facts.key}"')
            .replace(str(texts.path), texts.key)
        ),
        "recipe": _described(recipe, run.way.config or {}) if run.way.is_recipe else None,
        "base_fingerprint": fingerprint,
        "versions": {name: version(name) for name in _PACKAGES},
        "study_version": STUDY_VERSION,
    }
    return Order(run, config, num_taught, stated, content_key(stated))


def _gate_of(way: Way) -> SubjectGate:
    """The gate of the gated recipe: its own, or the one that the way gives."""
    given = (way.config or {}).get("model", {}).get("gate")
    return SubjectGate("subjects_and_targets") if given is None else SubjectGate(**given["init_args"])


@cache  # it reads the whole file of the weights
def _base(name: str) -> tuple[str, int]:
    base = BaseModel(name)
    return base.source.fingerprint, base.count_parameters()


def _described(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe chooses; what the way itself sets is not chosen."""
    model = given.get("model", {})
    described = {
        "num_steps": recipe.num_steps,
        "forms": [[source.name, vars(source)] for source in recipe.forms.sources or ()],
        "from_paraphrases": recipe.forms.from_paraphrases,
    }
    if "optimizer" not in model:
        described["learning_rate"] = recipe.learning_rate
    if "retain" not in model:
        described["retain"] = [[source.name, vars(source)] for source in recipe.retain]
    return described


def plain_rate(run: Run, setting: Setting, results: ResultFolder) -> float | None:
    """The rate at which plain training recalls most held-out paraphrases of the facts that choose; None if not known.

    Of rates that recall as many, the one that moves unrelated text least.

    Args:
        run: A run of plain training.
        setting: Its setting.
        results: What is there.
    """
    if run.way.is_recipe:
        return None
    if run.learning_rate is not None:
        return run.learning_rate
    tried = {
        one.learning_rate: results.read(one.name)
        for one in runs_of(setting, "choose")
        if one.model == run.model and one.way.name == PLAIN
    }
    scores = {
        rate: (_mean(found["paraphrases"]), -fmean(found["text_nll_delta"]))
        for rate, found in tried.items()
        if rate is not None and found is not None and found["status"] == "done"
    }
    if len(scores) < len(run.model.rates):
        return None
    return max(scores, key=lambda rate: scores[rate])


def pending(setting: Setting, results: ResultFolder, only: Collection[str] = ()) -> list[Order]:
    """The runs whose result is missing, outdated, failed or cancelled, and whose choices are made.

    Args:
        setting: The setting.
        results: What is there.
        only: Only runs whose name begins with one of these; all where empty.
    """
    orders = []
    for run in [*runs_of(setting, "choose"), *runs_of(setting, "report")]:
        if only and not run.name.startswith(tuple(only)):
            continue
        rate = plain_rate(run, setting, results)
        if rate is None and not run.way.is_recipe:
            continue
        order = order_of(run, setting, rate)
        if not results.is_done(run.name, order.key):
            orders.append(order)
    return orders


def run_all(
    setting: Setting,
    processes: int,
    minutes: float | None,
    only: Collection[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Runs what is missing: first what chooses, then what is reported.

    Args:
        setting: The setting.
        processes: How many at a time.
        minutes: No run is begun after so many; None for no limit.
        only: Only runs whose name begins with one of these.
        say: Shows progress.

    Returns:
        How many runs failed.
    """
    results = ResultFolder(setting.results)
    remove_leftovers(setting.results)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    failed: set[str] = set()
    while orders := [one for one in pending(setting, results, only) if one.run.name not in failed]:
        stage = [one for one in orders if one.run.role == orders[0].run.role]
        say(f"{stage[0].run.role}: {len(stage)} runs to do")
        calls = [(order, setting, deadline) for order in stage]
        left = False
        for done, (name, status, seconds) in enumerate(side_by_side(execute, calls, processes, 1), 1):
            if status == "failed":
                failed.add(name)
            left |= status == "left"
            say(f"{done}/{len(stage)} {name}: {status}, {seconds:.0f} s")
        if left:
            say("Some runs are left; run the same command again.")
            break
    return len(failed)


def execute(order: Order, setting: Setting, deadline: float | None = None) -> tuple[str, str, float]:
    """Trains and evaluates one run and writes its result, also where it fails.

    Args:
        order: The run.
        setting: Its setting.
        deadline: Of `time.monotonic()`: after it no run is begun.

    Returns:
        Name, status and seconds.
    """
    run, results = order.run, ResultFolder(setting.results)
    if deadline is not None and time.monotonic() > deadline:
        return run.name, "left", 0.0
    about = {
        "key": order.key,
        "model": run.model.name,
        "kind": run.kind,
        "role": run.role,
        "way": run.way.name,
        "seed": run.seed,
        "learning_rate": None if run.way.is_recipe else order.config["model"]["optimizer"]["init_args"]["lr"],
        "depends_on": order.depends_on,
    }

    def measure() -> dict[str, Any]:
        with trained(order.config, WORK / "runs" / f"{order.key}-{os.getpid()}") as folder:
            return measured(folder, order.num_taught)

    status, seconds = recorded(about, measure, partial(results.write, run.name))
    return run.name, status, seconds


def measured(folder: Path, num_taught: int) -> dict[str, Any]:
    """Reads what a run has left behind.

    Args:
        folder: The run folder.
        num_taught: The first so many facts were taught.

    Returns:
        A number per taught fact for each of `SCORES`, of the known facts that are only asked whether each is still
        known, those of taught subjects apart, of the passages what they lost, and what was spent. Through the gate
        where the run has one.
    """
    table = RunFolder(folder).facts
    spent = json.loads((folder / FILE).read_text(encoding="utf-8"))
    column = {name: table.column(name).to_pylist() for name in table.column_names} | (spent["through_gate"] or {})
    found: dict[str, Any] = {"fact_id": column["fact_id"][:num_taught], "num_kept": sum(column["kept"])}
    for name, score in SCORES.items():
        found[name] = [_rounded(value) for value in column[score][:num_taught]]
    known = [
        row
        for row, (split, before) in enumerate(
            zip(column["split"], column["efficacy_teacher_forced_before"], strict=True)
        )
        if split == "probe" and before
    ]
    subjects = set(column["subject"][:num_taught])
    for name, rows in (
        ("known", [row for row in known if column["subject"][row] not in subjects]),
        ("known_of_subjects", [row for row in known if column["subject"][row] in subjects]),
    ):
        found[f"{name}_id"] = [column["fact_id"][row] for row in rows]
        found[name] = [_rounded(column["efficacy_teacher_forced_after"][row]) for row in rows]
    found["text_nll_delta"] = [round(float(value), 4) for value in spent["text_nll_delta"]]
    step_seconds = spent.pop("step_cpu_seconds")
    found["step_cpu_seconds"] = round(median(step_seconds), 4)
    return found | {name: spent[name] for name in ("num_steps", "num_tokens", "peak_memory_gb")}


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def in_one_line(found: Mapping[str, Any]) -> str:
    """One run in a line: percentages of its scores, and what unrelated text lost."""
    parts = [f"{name} {_mean(found[name]):.0%}" for name in (*SCORES, "known")]
    return ", ".join(
        [*parts, f"text {fmean(found['text_nll_delta']):+.3f}", f"{found['step_cpu_seconds']:.2f} s a step"]
    )


def _mean(values: list[float | None]) -> float:
    """Of what was measured; NaN where nothing was."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else math.nan
