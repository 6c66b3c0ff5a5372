"""The commands of the study: `run`, `list`, `ledger` and `table`."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.studies import status_of_runs
from experiments.study.plan import Setting, load_setting
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextArgumentParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where runs failed or were cancelled; 2 where the input cannot be used.
    """
    parser = TextArgumentParser(prog="python -m experiments.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("run", "run what is missing, outdated, failed or cancelled"),
        ("list", "every run, and whether it is done"),
        ("ledger", "every block with its runs and seconds, as Markdown"),
        ("table", "write RESULTS.md and its plots, and the section of docs/study.md for the setting `cpu`"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--setting", default="smoke", help="smoke, cpu, gpu, or a YAML file (default: smoke)")
        command.add_argument("--base_model", help="another model than the setting's")
        command.add_argument("--results", type=Path, help="another folder for the results")
        if name == "run":
            command.add_argument("--processes", type=int, help="trainings side by side (default: the setting's)")
            command.add_argument("--minutes", type=float, help="begin no run that would end later")
    options = parser.parse_args(arguments)
    try:
        setting = load_setting(options.setting, options.base_model, options.results)
        if options.command == "run":
            return _run(setting, options.processes, options.minutes)
        if options.command == "list":
            _list(setting)
        elif options.command == "ledger":
            from experiments.study.ledger import ledger

            print(ledger(setting), end="")
        else:
            from experiments.study.table import write_tables

            print(f"Written: {write_tables(setting)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(setting: Setting, processes: int | None, minutes: float | None) -> int:
    from experiments.study.execute import run_all

    return status_of_runs(
        lambda: run_all(setting, processes or setting.processes, minutes), processes=processes, minutes=minutes
    )


def _list(setting: Setting) -> None:
    from experiments.study.execute import status_of

    rows = status_of(setting)
    for run, state in rows:
        print(f"{run.name:60} {state}")
    counts = Counter(state for _, state in rows)
    print(", ".join(f"{number} {state}" for state, number in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
