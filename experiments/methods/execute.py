"""Runs what is missing, each training in a process of its own, and keeps one JSON file for each."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.methods.facts import facts_of
from experiments.methods.plan import CHOOSE_SEED, Run, Setting, config_of, runs_of
from experiments.methods.rates import learned
from experiments.recipe_study.execute import measured
from experiments.recipe_study.recorder import FILE
from experiments.running import recorded, side_by_side, trained
from experiments.study.plan import ROOT
from experiments.study.results import ResultFolder
from lit_semantic_peft.files import content_key, remove_leftovers
from lit_semantic_peft.models import BaseModel

METHODS_VERSION = 1
"""Part of every run's key; raised whenever a change of the project changes what training or evaluation gives."""

WORK = ROOT / "runs" / "methods"
_PACKAGES = ("torch", "transformers", "peft", "lightning")


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


def order_of(run: Run, setting: Setting) -> Order:
    """Finds facts and configuration of a run, and the key of its result.

    Args:
        run: The run.
        setting: The setting.
    """
    facts, token_ids = facts_of(run.role, setting, WORK / "facts")
    config = config_of(run, setting, facts.path, token_ids)
    stated = {
        "config": json.loads(json.dumps(config).replace(json.dumps(str(facts.path)), f'"{facts.key}"')),
        "base_fingerprint": _fingerprint(setting.base_model),
        "versions": {name: version(name) for name in _PACKAGES},
        "methods_version": METHODS_VERSION,
    }
    return Order(run, config, setting.num_facts[run.role], stated, content_key(stated))


@cache  # it reads the whole file of the weights
def _fingerprint(base_model: str) -> str:
    return BaseModel(base_model).source.fingerprint


def missing(runs: Sequence[Run], setting: Setting) -> list[Order]:
    """The runs whose result is missing, outdated, failed or cancelled.

    Args:
        runs: The runs.
        setting: Their setting.
    """
    results = ResultFolder(setting.results)
    orders = [order_of(run, setting) for run in runs]
    return [order for order in orders if not results.is_done(order.run.name, order.key)]


def run_methods(
    setting: Setting,
    methods: Sequence[str],
    rates: Sequence[float],
    processes: int,
    minutes: float | None,
    say: Callable[[str], None] = print,
) -> int:
    """Runs what is missing.

    Args:
        setting: The setting.
        methods: Names of the methods.
        rates: Learning rates to try on the facts that choose; where empty, the reported runs.
        processes: How many at a time.
        minutes: No run is begun after so many; None for no limit.
        say: Shows progress.

    Returns:
        How many runs failed.
    """
    tried = [Run(method, "choose", CHOOSE_SEED, rate) for method in methods for rate in rates]
    remove_leftovers(setting.results)
    orders = missing(tried or runs_of(setting, methods), setting)
    say(f"{len(orders)} runs to do")
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    calls = [(order, setting, deadline) for order in orders]
    failed = 0
    for done, (name, status, seconds) in enumerate(side_by_side(execute, calls, processes, 1, fresh=True), 1):
        failed += status == "failed"
        say(f"{done}/{len(orders)} {name}: {status}, {seconds:.0f} s")
    return failed


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
        "method": run.method,
        "role": run.role,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "depends_on": order.depends_on,
    }
    measure = partial(learned, order.config) if run.role == "choose" else partial(_evaluated, order)
    status, seconds = recorded(about, measure, partial(results.write, run.name))
    return run.name, status, seconds


def _evaluated(order: Order) -> dict[str, Any]:
    with trained(order.config, WORK / "runs" / f"{order.key}-{os.getpid()}") as folder:
        spent = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        return {**measured(folder, order.num_taught), "num_parameters": spent["num_parameters"]}
