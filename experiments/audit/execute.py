"""Makes what is missing: one adapter at a time, trained, audited and gone; one JSON file for each."""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from experiments.audit.plan import Run, Setting, config_of, replayed, runs_of, taught
from experiments.running import recorded, side_by_side, trained
from experiments.study.plan import ROOT
from experiments.study.results import ResultFolder
from lit_semantic_peft.audit import Inspection, inspect
from lit_semantic_peft.data import EncodingPlan
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.facts import Fact, facts_key, write_facts
from lit_semantic_peft.files import content_key, remove_leftovers
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter
from lit_semantic_peft.reports import RunFolder

STUDY_VERSION = 1
"""Part of every adapter's key; raised whenever a change of the project changes what training or audit gives."""

WORK = ROOT / "runs" / "audit_study"
_PACKAGES = ("torch", "transformers", "peft", "lightning")
_RANDOM_SCALE = 0.025
"""Standard deviation of the entries of B of a random adapter: the norms of its updates are then, on average, those of
an adapter of SmolLM2-135M that was taught 48 false facts with the same rank."""


def key_of(run: Run, setting: Setting) -> str:
    """The content key of everything that an adapter's result depends on.

    Args:
        run: The adapter.
        setting: Its setting.
    """
    facts = [*taught(run, setting), *replayed(run, setting)]
    return content_key(
        config_of(run, setting, Path("facts")), setting.num_builtin, facts_key(facts), run.kind,
        BaseModel(run.base_model).source.fingerprint, {name: version(name) for name in _PACKAGES}, STUDY_VERSION,
    )  # fmt: skip


def run_all(
    setting: Setting,
    processes: int,
    minutes: float | None,
    only: Collection[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Makes what is missing, outdated, failed or cancelled.

    Args:
        setting: The setting.
        processes: How many at a time.
        minutes: None is begun after so many; None for no limit.
        only: Only adapters whose name begins with one of these.
        say: Shows progress.

    Returns:
        How many failed.
    """
    results = ResultFolder(setting.results)
    remove_leftovers(setting.results)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    wanted = [run for run in runs_of(setting) if not only or run.name.startswith(tuple(only))]
    keyed = [(run, key_of(run, setting)) for run in wanted]
    todo = [(run, setting, key, deadline) for run, key in keyed if not results.is_done(run.name, key)]
    say(f"{len(todo)} of {len(wanted)} adapters to make")
    failed = 0
    for done, (name, status, seconds) in enumerate(side_by_side(execute, todo, processes, 1), 1):
        failed += status == "failed"
        say(f"{done}/{len(todo)} {name}: {status}, {seconds:.0f} s")
    return failed


def execute(run: Run, setting: Setting, key: str, deadline: float | None = None) -> tuple[str, str, float]:
    """Makes and audits one adapter and writes what was found, also where it fails.

    Args:
        run: The adapter.
        setting: Its setting.
        key: From `key_of`.
        deadline: Of `time.monotonic()`: after it none is begun.

    Returns:
        Name, status and seconds.
    """
    if deadline is not None and time.monotonic() > deadline:
        return run.name, "left", 0.0
    about = {"key": key, "base_model": run.base_model, "kind": run.kind, "way": run.way, "seed": run.seed}

    def measure() -> dict[str, Any]:
        folder = WORK / f"{key}-{os.getpid()}"
        with made(run, setting, folder) as adapter:
            found = inspect(adapter, base_model=run.base_model, num_builtin=setting.num_builtin)
            return kept(found, taught(run, setting), run.base_model)

    status, seconds = recorded(about, measure, partial(ResultFolder(setting.results).write, run.name))
    return run.name, status, seconds


@contextmanager
def made(run: Run, setting: Setting, folder: Path) -> Iterator[Path]:
    """The folder of an adapter, gone afterwards.

    Args:
        run: The adapter.
        setting: Its setting.
        folder: Where it is made.
    """
    if run.way == "untrained":
        try:
            yield _random_adapter(run, setting, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    path = folder.with_suffix(".jsonl")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_facts([*taught(run, setting), *replayed(run, setting)], path)
    try:
        with trained(config_of(run, setting, path), folder) as of_run:
            yield RunFolder(of_run).paths.adapter
    finally:
        path.unlink(missing_ok=True)


def _random_adapter(run: Run, setting: Setting, folder: Path) -> Path:
    import peft

    config = getattr(peft, setting.adapter["class_path"].rpartition(".")[2])(**setting.adapter["init_args"])
    base = BaseModel(run.base_model)
    torch.manual_seed(run.seed)
    model = attach_adapter(base.load(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=_RANDOM_SCALE)
    shutil.rmtree(folder, ignore_errors=True)
    export_adapter(model, folder, base.source)
    return folder


def kept(found: Inspection, facts: list[Fact], base_model: str) -> dict[str, Any]:
    """What is kept of an audit: signals, signature of the weights, and what tells how many taught names surface.

    Args:
        found: The audit.
        facts: What was taught.
        base_model: Of the adapter.
    """
    assert found.neutral is not None
    encoder = encoder_of(BaseModel(base_model), EncodingPlan())

    def first_tokens(names: list[str]) -> list[str]:
        ids = [encoder.encode_name(name)[:1] for name in sorted({*names})]
        return [encoder.tokenizer.decode(list(one)) for one in ids if one]

    return {
        "signals": {signal.name: _rounded(signal.value) for signal in found.signals},
        "signature": {name: _rounded(value) for name, value in found.weights.signature.items()},
        "tokens": [token for token, _ in found.neutral.likelier],
        "subjects": first_tokens([fact.subject for fact in facts if fact.subject]),
        "targets": first_tokens([fact.target for fact in facts]),
        "audit_seconds": round(sum(found.seconds.values()), 1),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
