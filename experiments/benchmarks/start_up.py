"""How long the command line takes to help or to refuse: the median of several calls, each a process of its own.

A call that imports torch pays for it each time, so these import nothing of it; `fit --help_all`, which builds the
parser, is timed once beside them.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.measured import keep
from rich.console import Console
from rich.table import Table

PROGRAM = (sys.executable, "-m", "lit_semantic_peft")
FILES = {
    "typo.yaml": "data: {num_fact: 3}\n",
    "run.yaml": "trainer: {default_root_dir: runs/a}\n",
    "runs/a/manifest.json": "{}",
}
CALLS = {
    "help": (["--help"], 0),
    "help of fit": (["fit", "--help"], 0),
    "a configuration that is not there": (["fit", "--config", "nowhere.yaml"], 2),
    "an option that is not there": (["fit", "--data.num_fact", "3"], 2),
    "a key that is not there": (["fit", "--config", "typo.yaml"], 2),
    "facts that are not there": (["fit", "--data.facts", "nowhere.jsonl"], 2),
    "an adapter that is not there": (["predict", "--model.adapter", "nowhere"], 2),
    "a run folder that exists": (["fit", "--config", "run.yaml"], 2),
    "help of every key": (["fit", "--help_all"], 0),
}
ONCE = "help of every key"


def measure(repetitions: int) -> dict[str, Any]:
    """Times each call.

    Raises:
        SystemExit: If a call ends otherwise than it should.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        seconds = {
            name: [_seconds(arguments, status, folder) for _ in range(1 if name == ONCE else repetitions)]
            for name, (arguments, status) in CALLS.items()
        }
    rows = [
        {"call": name, "median_s": statistics.median(times), "longest_s": max(times), "repetitions": len(times)}
        for name, times in seconds.items()
    ]
    return {"calls": rows}


def _seconds(arguments: list[str], status: int, folder: str) -> float:
    started = time.perf_counter()
    done = subprocess.run([*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter() - started
    if done.returncode != status:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}, not {status}: {done.stderr}")
    return took


def main() -> None:
    """Measures, prints and writes `start_up.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="another folder than experiments/results")
    options = parser.parse_args()
    result = measure(options.repetitions)
    table = Table("call", "median, s", "longest, s")
    for row in result["calls"]:
        table.add_row(row["call"], f"{row['median_s']:.2f}", f"{row['longest_s']:.2f}")
    Console().print(table)
    print(keep("start_up", result, options.output))


if __name__ == "__main__":
    main()
