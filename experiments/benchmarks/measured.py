"""What the benchmarks share: provenance, peak memory, and how a result is written."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"

_NO_CODE = (":!experiments/results", ":!README.md", ":!docs/study.md")  # written from results, also between two runs


def provenance() -> dict[str, Any]:
    """Versions, commit, whether files other than results and pages made from them were changed, and the hardware.

    Of absolute paths in the command only the name is kept: a machine's folders are private.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(
            Path(one).name if Path(one).is_absolute() else one for one in [Path(sys.argv[0]).name, *sys.argv[1:]]
        ),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NO_CODE)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "lightning")},
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def peak_memory_gb() -> float:
    """Most memory that this process has had since it started, GB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 / 1e9


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Names in turn, each repetition with another one first.

    Args:
        names: The names.
        by: Number of the repetition.
    """
    at = by % len(names)
    return [*names[at:], *names[:at]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most.

    Args:
        values: At least one.
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def keep(name: str, result: dict[str, Any], folder: Path | None = None) -> Path:
    """Writes a result with its provenance.

    Args:
        name: Of the benchmark.
        result: Plain data.
        folder: Where to; `experiments/results` where None.
    """
    path = (folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"provenance": provenance(), **result}, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    """Name of the processor's model (Linux); elsewhere what Python knows of it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
