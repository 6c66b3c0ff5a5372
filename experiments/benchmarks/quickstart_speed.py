"""Where the time of the quickstart goes: from the command to its first optimizer step, then training and evaluation.

    python -m experiments.benchmarks.quickstart_speed                # two whole runs, a quarter of an hour
    python -m experiments.benchmarks.quickstart_speed --first_step   # both end with the first step

The command of `make quickstart` in processes of their own: with an empty cache, then with what that run left in it
(the base model's weights, scores, retained texts and answers). Processor seconds are those of all threads; beside other
jobs only they are meaningful.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.measured import ROOT, keep
from rich.console import Console
from rich.table import Table

CODE = "from experiments.benchmarks.quickstart_speed import main_of_run; main_of_run()"
PARTS = ("setup", "scoring", "training", "evaluation")


def run(arguments: Sequence[str], note: Path, begun: float, *, stops: bool) -> int:
    """Runs a command of the package in this process, and notes when its first optimizer step is made.

    Args:
        arguments: The command.
        note: A file that gets the seconds since `begun`, and the process's own.
        begun: Time when the command was given, seconds since the epoch.
        stops: Whether the process ends there.

    Returns:
        The command's exit status.
    """
    from lit_semantic_peft.__main__ import main as command
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def first_step(*_: Any) -> None:
        handle.remove()
        note.write_text(json.dumps({"seconds": time.time() - begun, "processor_seconds": time.process_time()}))
        if stops:
            os._exit(0)

    handle = register_optimizer_step_post_hook(first_step)
    try:
        return command(arguments)
    finally:
        handle.remove()


def main_of_run() -> None:
    """`run` with the arguments of the process: a file, the time, whether to stop, and the command."""
    note, begun, stops, *arguments = sys.argv[1:]
    raise SystemExit(run(arguments, Path(note), float(begun), stops=stops == "stops"))


def in_process(arguments: Sequence[str], note: Path, cache: Path, *, stops: bool) -> None:
    """`run` in a process of its own.

    Args:
        arguments: The command.
        note: As in `run`.
        cache: Folder of the package's cache.
        stops: As in `run`.

    Raises:
        CalledProcessError: If the command fails.
    """
    environment = {**os.environ, "LIT_SEMANTIC_PEFT_CACHE": str(cache)}
    told = [str(note), str(time.time()), "stops" if stops else "goes on"]
    subprocess.run([sys.executable, "-c", CODE, *told, *arguments], cwd=ROOT, env=environment, check=True)


def measure(config: Path, folder: Path, *, stops: bool) -> dict[str, Any]:
    """Both runs.

    Args:
        config: Configuration of the runs.
        folder: An empty folder for runs and cache.
        stops: As in `run`.
    """
    runs = []
    for cache in ("empty", "filled"):
        note, of_run = folder / f"{cache}.json", folder / cache
        arguments = ["fit", "--config", str(config), "--trainer.default_root_dir", str(of_run)]
        in_process(arguments, note, folder / "cache", stops=stops)
        summary = of_run / "summary.json"
        parts = None if stops else json.loads(summary.read_text(encoding="utf-8"))["seconds"]
        runs.append({"cache": cache, "first_step": json.loads(note.read_text()), "parts": parts})
    return {"config": config.name, "runs": runs}


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table("cache", "first step after, s", "processor seconds", *(f"{part}, s" for part in PARTS))
    for row in result["runs"]:
        first, parts = row["first_step"], row["parts"] or {}
        numbers = [first["seconds"], first["processor_seconds"], *(parts.get(name) for name in PARTS)]
        table.add_row(row["cache"], *("" if one is None else f"{one:.1f}" for one in numbers))
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes `quickstart_speed.json`, or `first_step.json` where the runs end there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "experiments" / "quickstart.yaml")
    parser.add_argument("--first_step", action="store_true", help="end both runs with their first optimizer step")
    parser.add_argument("--output", type=Path, help="folder of the result; experiments/results where left out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.config.absolute(), Path(folder), stops=options.first_step)
    show(result)
    print(keep("first_step" if options.first_step else "quickstart_speed", result, options.output))


if __name__ == "__main__":
    main()
