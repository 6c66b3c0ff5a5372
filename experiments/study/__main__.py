"""The commands of the study: `run`, `list`, `ledger` and `table`."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from experiments.studies import exit_status, status_of_runs, study_parser
from experiments.study.plan import Setting, load_setting

COMMANDS = {
    "run": "run what is missing, outdated, failed or cancelled",
    "list": "every run, and whether it is done",
    "ledger": "every block with its runs and seconds, as Markdown",
    "table": "write RESULTS.md and its plots, and the section of docs/study.md for the setting `cpu`",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where runs failed or were cancelled; 2 where the input cannot be used.
    """
    parser, commands = study_parser(
        "experiments.study", __doc__, COMMANDS, settings="smoke, cpu, gpu", default="smoke", processes="the setting's"
    )
    for command in commands.values():
        command.add_argument("--base_model", help="another model than the setting's")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int | None:
    setting = load_setting(options.setting, options.base_model, options.results)
    if options.command == "run":
        return _run_missing(setting, options.processes, options.minutes)
    if options.command == "list":
        _list(setting)
    elif options.command == "ledger":
        from experiments.study.ledger import ledger

        print(ledger(setting), end="")
    else:
        from experiments.study.table import write_tables

        print(f"Written: {write_tables(setting)}")
    return None


def _run_missing(setting: Setting, processes: int | None, minutes: float | None) -> int:
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
