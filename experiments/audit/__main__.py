"""How well the audit does: `run` makes and audits adapters, `list` shows them, `table` says which signals are right."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.audit.plan import load_setting, runs_of
from experiments.studies import status_of_runs
from experiments.study.results import ResultFolder
from lit_semantic_peft.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where adapters failed or were cancelled; 2 where the input cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("run", "make and audit what is missing, outdated, failed or cancelled"),
        ("list", "every adapter, and what its audit gave"),
        ("table", "write AUDIT.md and what page and audit say of the rules"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--setting", default="cpu", help="cpu, trial, or a YAML file (default: cpu)")
        command.add_argument("--results", type=Path, help="another folder for the results")
        if name == "run":
            command.add_argument("--processes", type=int, default=2, help="adapters side by side (default: 2)")
            command.add_argument("--minutes", type=float, help="begin none later")
            command.add_argument("--only", nargs="*", default=(), help="only those whose name begins with one of these")
    options = parser.parse_args(arguments)
    try:
        setting = load_setting(options.setting, options.results)
        if options.command == "run":
            from experiments.audit.execute import run_all

            return status_of_runs(
                lambda: run_all(setting, options.processes, options.minutes, options.only),
                processes=options.processes,
                minutes=options.minutes,
            )
        if options.command == "list":
            results = ResultFolder(setting.results)
            for run in runs_of(setting):
                found = results.read(run.name)
                said = "missing" if found is None else found["status"]
                print(f"{run.name:45} {found['signals'] if found and said == 'done' else said}")
        else:
            from experiments.audit.table import write_tables

            print(f"Written: {write_tables(setting)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
