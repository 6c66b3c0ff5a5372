"""What the recipe gives against plain LoRA: `run`, `list` and `table`."""

import argparse
import sys
from collections.abc import Sequence

from experiments.recipe_study.plan import load_setting, runs_of
from experiments.studies import exit_status, print_results, run_missing, study_parser
from experiments.study.results import ResultFolder

COMMANDS = {
    "run": "run what is missing, outdated, failed or cancelled",
    "list": "every run, and what it gave",
    "table": "write RECIPE.md, its picture, and the tables of the README and of docs/recipe.md",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where runs failed or were cancelled; 2 where the input cannot be used.
    """
    parser, commands = study_parser(
        "experiments.recipe_study", __doc__, COMMANDS, settings="cpu", default="cpu", processes="2"
    )
    commands["run"].add_argument("--only", nargs="*", default=(), help="only runs whose name begins with one of these")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int | None:
    setting = load_setting(options.setting, options.results)
    if options.command == "run":
        from experiments.recipe_study.execute import run_all

        return run_missing(run_all, setting, options)
    if options.command == "list":
        from experiments.recipe_study.execute import in_one_line

        runs = [*runs_of(setting, "choose"), *runs_of(setting, "report")]
        print_results((run.name for run in runs), ResultFolder(setting.results).read, in_one_line)
        return None
    from experiments.recipe_study.overview import write_overview
    from experiments.recipe_study.table import is_published, write_tables

    print(f"Written: {write_tables(setting)}")
    if is_published(setting):
        write_overview(setting)
    return None


if __name__ == "__main__":
    sys.exit(main())
