"""How well the audit does: `run` makes and audits adapters, `list` shows them, `table` says which signals are right."""

import argparse
import sys
from collections.abc import Sequence

from experiments.audit.plan import load_setting, runs_of
from experiments.studies import exit_status, print_results, run_missing, study_parser
from experiments.study.results import ResultFolder

COMMANDS = {
    "run": "make and audit what is missing, outdated, failed or cancelled",
    "list": "every adapter, and what its audit gave",
    "table": "write AUDIT.md and what page and audit say of the rules",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where adapters failed or were cancelled; 2 where the input cannot be used.
    """
    parser, commands = study_parser(
        "experiments.audit", __doc__, COMMANDS, settings="cpu, trial", default="cpu", processes="2"
    )
    commands["run"].add_argument("--only", nargs="*", default=(), help="only those whose name begins with one of these")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int | None:
    setting = load_setting(options.setting, options.results)
    if options.command == "run":
        from experiments.audit.execute import run_all

        return run_missing(run_all, setting, options)
    if options.command == "list":
        names = (run.name for run in runs_of(setting))
        print_results(names, ResultFolder(setting.results).read, lambda found: str(found["signals"]))
        return None
    from experiments.audit.table import write_tables

    print(f"Written: {write_tables(setting)}")
    return None


if __name__ == "__main__":
    sys.exit(main())
