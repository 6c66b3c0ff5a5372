"""Runs what is missing: one training at a time through the package's own command, one JSON file for each."""

import logging
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from itertools import product
from statistics import median
from typing import Any, get_args

from experiments.running import recorded, side_by_side, trained
from experiments.study.facts import StudyFacts, facts_of
from experiments.study.plan import ROOT, Role, Run, Setting, config_of, keyed, runs_of
from experiments.study.results import ResultFolder, choose_learning_rate, measured, unfairness
from lit_semantic_peft.files import content_key, remove_leftovers
from lit_semantic_peft.models import BaseModel

logger = logging.getLogger(__name__)

STUDY_VERSION = 1
"""Part of every run's key; raised whenever a change of the project changes what training or evaluation gives."""

WORK = ROOT / "runs" / "study"
_PACKAGES = ("torch", "transformers", "peft", "lightning")


@dataclass(frozen=True)
class Order:
    """A run that is ready to go.

    Attributes:
        run: The run.
        config: Its YAML as plain data.
        facts: Its facts.
        key: Content key of everything that its result depends on.
        depends_on: The same, readable.
    """

    run: Run
    config: dict[str, Any]
    facts: StudyFacts
    key: str
    depends_on: dict[str, Any]


def order_of(run: Run, setting: Setting, learning_rate: float) -> Order:
    """Finds facts and configuration of a run, and the key of its result.

    Args:
        run: The run.
        setting: The setting.
        learning_rate: The one to train with.
    """
    facts = facts_of(run.block, run.role, setting, WORK / "facts")
    config = config_of(run, setting, learning_rate, facts.path)
    depends_on = {
        "config": {**keyed(config), "data": {**config["data"], "facts": facts.key}},
        "base_fingerprint": _fingerprint(setting.base_model),
        "versions": {name: version(name) for name in _PACKAGES},
        "threads": setting.threads,
        "study_version": STUDY_VERSION,
    }
    return Order(run, config, facts, content_key(depends_on), depends_on)


@cache  # it reads the whole file of the weights
def _fingerprint(base_model: str) -> str:
    return BaseModel(base_model).source.fingerprint


def pending(setting: Setting, results: ResultFolder, role: Role, arms: Collection[str] | None = None) -> list[Order]:
    """The runs whose result is missing, outdated, failed or cancelled. Reported runs need the choice to be made.

    Args:
        setting: The setting.
        results: What is there.
        role: `tune` or `report`.
        arms: Only runs of these; all where None.
    """
    orders = []
    for run in runs_of(setting, role):
        if arms is not None and run.arm.name not in arms:
            continue
        rate = run.learning_rate or choose_learning_rate(run, setting, results)
        if rate is None:
            continue
        order = order_of(run, setting, rate)
        if not results.is_done(run.name, order.key):
            orders.append(order)
    return orders


def run_all(setting: Setting, processes: int, minutes: float | None, say: Callable[[str], None] = print) -> int:
    """Runs what is missing, stage by stage: first what chooses, then what is reported.

    Args:
        setting: The setting.
        processes: How many at a time.
        minutes: No run is begun that is not expected to end by then; None for no limit.
        say: Shows progress.

    Returns:
        How many runs failed.
    """
    results = ResultFolder(setting.results)
    remove_leftovers(setting.results)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    slowness = slowness_of(setting, results)
    failed: set[str] = set()
    for stage, role in product(setting.stages, get_args(Role)):
        orders = pending(setting, results, role, stage)
        say(f"{role} {', '.join(stage)}: {len(orders)} runs to do")
        calls = [(order, setting, deadline, slowness) for order in orders]
        for done, (name, status, seconds) in enumerate(side_by_side(execute, calls, processes, setting.threads), 1):
            if status == "failed":
                failed.add(name)
            say(f"{role} {done}/{len(orders)} {name}: {status}, {seconds:.0f} s")
        # What failed is tried again by the next call; it does not keep this one from what comes after.
        if left := [order for order in pending(setting, results, role, stage) if order.run.name not in failed]:
            say(f"{role}: {len(left)} runs are left; run the same command again")
            break
    return len(failed)


def slowness_of(setting: Setting, results: ResultFolder) -> float:
    """Median of measured over expected seconds of the finished runs; 1 where none is finished.

    Args:
        setting: The setting.
        results: What is there.
    """
    ratios = [
        result["seconds"] / run.seconds(setting)
        for role in get_args(Role)
        for run in runs_of(setting, role)
        if (result := results.read(run.name)) is not None and result["status"] == "done"
    ]
    return median(ratios) if ratios else 1.0


def execute(
    order: Order, setting: Setting, deadline: float | None = None, slowness: float = 1.0
) -> tuple[str, str, float]:
    """Trains and evaluates one run and writes its result, also where it fails.

    Args:
        order: The run.
        setting: Its setting.
        deadline: Of `time.monotonic()`: a run that would end later is not begun.
        slowness: How many times the expected seconds runs take on this machine.

    Returns:
        Name, status and seconds.
    """
    run, results = order.run, ResultFolder(setting.results)
    if deadline is not None and time.monotonic() + slowness * run.seconds(setting) > deadline:
        return run.name, "left for the next part", 0.0
    about = {
        "key": order.key,
        "block": run.block.name,
        "arm": run.arm.name,
        "role": run.role,
        "pace": run.pace,
        "is_control": run.is_control,
        "seed": run.seed,
        "learning_rate": order.config["model"]["optimizer"]["init_args"]["lr"],
        "facts_key": order.facts.key,
        "depends_on": order.depends_on,
    }

    def measure() -> dict[str, Any]:
        with trained(order.config, WORK / "runs" / f"{order.key}-{os.getpid()}") as folder:
            found, facts = measured(folder, run.block.num_facts, short=run.role == "tune")
        results.write_facts(order.facts.key, facts)
        problem = unfairness(run, found)
        return {**found, "status": "failed", "error": problem} if problem else found

    status, seconds = recorded(about, measure, partial(results.write, run.name))
    return run.name, status, seconds


def status_of(setting: Setting) -> list[tuple[Run, str]]:
    """Every run of a setting with what is known of it: done, missing, outdated, failed, cancelled, waits."""
    results = ResultFolder(setting.results)
    rows = []
    for role in ("tune", "report"):
        for run in runs_of(setting, role):
            rate = run.learning_rate or choose_learning_rate(run, setting, results)
            if rate is None:
                rows.append((run, "waits for the choice of its learning rate"))
                continue
            key, kept = order_of(run, setting, rate).key, results.read(run.name)
            state = "outdated" if kept and kept["key"] != key else (kept or {"status": "missing"})["status"]
            rows.append((run, state))
    return rows
