"""What each method of peft gives on the same facts: `run`, `rates`, `list` and `table`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.methods.plan import Setting, load_setting, method_names, runs_of
from experiments.studies import status_of_runs
from experiments.study.results import ResultFolder
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextArgumentParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where runs failed or were cancelled; 2 where the input cannot be used.
    """
    parser = TextArgumentParser(prog="python -m experiments.methods", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("run", "run what is missing, outdated, failed or cancelled"),
        ("rates", "try learning rates on a few other facts"),
        ("list", "every reported run, and what it gave"),
        ("table", "write METHODS.md"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--setting", default="cpu", help="cpu, smoke, or a YAML file (default: cpu)")
        command.add_argument("--results", type=Path, help="another folder for the results")
        command.add_argument("--only", nargs="+", default=method_names(), metavar="METHOD", help="only these methods")
        if name in ("run", "rates"):
            _add_limits(command)
        if name == "rates":
            command.add_argument("--rates", type=float, nargs="+", required=True, help="peak rates of AdamW")
    options = parser.parse_args(arguments)
    try:
        setting = load_setting(options.setting, options.results)
        if unknown := sorted(set(options.only) - set(method_names())):
            raise InputError(f"the methods are {', '.join(method_names())}, got {', '.join(unknown)}")
        if options.command in ("run", "rates"):
            return _run(setting, options)
        if options.command == "list":
            _list(setting, options.only)
        else:
            from experiments.methods.table import write_table

            print(f"Written: {write_table(setting)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--processes", type=int, default=1, help="trainings side by side (default: 1)")
    command.add_argument("--minutes", type=float, help="begin no run later")


def _run(setting: Setting, options: argparse.Namespace) -> int:
    from experiments.methods.execute import run_methods

    rates = getattr(options, "rates", [])
    return status_of_runs(
        lambda: run_methods(setting, options.only, rates, options.processes, options.minutes),
        processes=options.processes,
        minutes=options.minutes,
        rates=min(rates, default=None),
    )


def _list(setting: Setting, methods: Sequence[str]) -> None:
    from experiments.recipe_study.execute import in_one_line

    results = ResultFolder(setting.results)
    for run in runs_of(setting, methods):
        found = results.read(run.name)
        said = "missing" if found is None else found["status"]
        print(f"{run.name:40} {in_one_line(found) if found and said == 'done' else said}")


if __name__ == "__main__":
    sys.exit(main())
