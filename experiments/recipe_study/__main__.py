"""What the recipe gives against plain LoRA: `run`, `list` and `table`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.recipe_study.plan import Setting, load_setting, runs_of
from experiments.studies import status_of_runs
from experiments.study.results import ResultFolder
from lit_semantic_peft.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where runs failed or were cancelled; 2 where the input cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.recipe_study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("run", "run what is missing, outdated, failed or cancelled"),
        ("list", "every run, and what it gave"),
        ("table", "write RECIPE.md, its picture and the README's table"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--setting", default="cpu", help="cpu, or a YAML file (default: cpu)")
        command.add_argument("--results", type=Path, help="another folder for the results")
        if name == "run":
            command.add_argument("--processes", type=int, default=2, help="trainings side by side (default: 2)")
            command.add_argument("--minutes", type=float, help="begin no run later")
            command.add_argument("--only", nargs="*", default=(), help="only runs whose name begins with one of these")
    options = parser.parse_args(arguments)
    try:
        setting = load_setting(options.setting, options.results)
        if options.command == "run":
            return _run(setting, options.processes, options.minutes, options.only)
        if options.command == "list":
            _list(setting)
        else:
            from experiments.recipe_study.table import write_tables

            print(f"Written: {write_tables(setting)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(setting: Setting, processes: int, minutes: float | None, only: Sequence[str]) -> int:
    from experiments.recipe_study.execute import run_all

    return status_of_runs(lambda: run_all(setting, processes, minutes, only), processes=processes, minutes=minutes)


def _list(setting: Setting) -> None:
    from experiments.recipe_study.execute import in_one_line

    results = ResultFolder(setting.results)
    for run in [*runs_of(setting, "choose"), *runs_of(setting, "report")]:
        found = results.read(run.name)
        said = "missing" if found is None else found["status"]
        print(f"{run.name:60} {in_one_line(found) if found and said == 'done' else said}")


if __name__ == "__main__":
    sys.exit(main())
