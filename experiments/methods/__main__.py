"""What each method of peft gives on the same facts: `run`, `rates`, `list` and `table`."""

import argparse
import sys
from collections.abc import Sequence

from experiments.methods.plan import load_setting, method_names, runs_of
from experiments.studies import exit_status, print_results, status_of_runs, study_parser
from experiments.study.results import ResultFolder
from lit_semantic_peft.errors import InputError

COMMANDS = {
    "run": "run what is missing, outdated, failed or cancelled",
    "rates": "try learning rates on a few other facts",
    "list": "every reported run, and what it gave",
    "table": "write METHODS.md",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where runs failed or were cancelled; 2 where the input cannot be used.
    """
    parser, commands = study_parser(
        "experiments.methods", __doc__, COMMANDS, settings="cpu, smoke", default="cpu", processes="1"
    )
    for command in commands.values():
        command.add_argument("--only", nargs="+", default=method_names(), metavar="METHOD", help="only these methods")
    commands["rates"].add_argument("--rates", type=float, nargs="+", required=True, help="peak rates of AdamW")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int | None:
    setting = load_setting(options.setting, options.results)
    if unknown := sorted(set(options.only) - set(method_names())):
        raise InputError(f"the methods are {', '.join(method_names())}, got {', '.join(unknown)}")
    if options.command in ("run", "rates"):
        from experiments.methods.execute import run_methods

        rates = getattr(options, "rates", [])
        return status_of_runs(
            lambda: run_methods(setting, options.only, rates, options.processes, options.minutes),
            processes=options.processes,
            minutes=options.minutes,
            rates=min(rates, default=None),
        )
    if options.command == "list":
        from experiments.recipe_study.execute import in_one_line

        names = (run.name for run in runs_of(setting, options.only))
        print_results(names, ResultFolder(setting.results).read, in_one_line)
        return None
    from experiments.methods.table import write_table

    print(f"Written: {write_table(setting)}")
    return None


if __name__ == "__main__":
    sys.exit(main())
