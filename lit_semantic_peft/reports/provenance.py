"""Where a run's numbers come from: the command, the versions, the process; and the results of an earlier evaluation."""

import resource
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_semantic_peft.reports.records import Summary

_PACKAGES = ("lit-semantic-peft", "torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "wandb")


def about_process() -> dict[str, Any]:
    """The fields of `Summary` that are known of the running process: time, command, memory and versions."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "peak_memory_gb": peak * (1 if sys.platform == "darwin" else 1024) / 1e9,
        "versions": _versions(),
    }


def keep_earlier(about: Mapping[str, Any], earlier: Summary | None) -> dict[str, Any]:
    """Fills what is not known of this evaluation from an earlier summary of the same facts.

    Args:
        about: Fields of `Summary` by name, with `seconds`; empty or None is "not known".
        earlier: The earlier summary; None fills nothing.
    """
    if earlier is None:
        return dict(about)
    filled = {name: value or getattr(earlier, name) for name, value in about.items()}
    if earlier.seconds is not None:  # a part that was measured anew replaces the earlier one
        filled["seconds"] = replace(earlier.seconds, **about["seconds"].measured)
    return filled


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "lit-semantic-peft" if name == "__main__.py" else name


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
