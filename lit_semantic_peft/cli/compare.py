"""`compare`: runs over the same facts, two with intervals and flipped facts, more side by side."""

from collections.abc import Sequence
from pathlib import Path

from lit_semantic_peft.cli.command_parser import CommandParser
from lit_semantic_peft.cli.early import refuse_no_runs
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextConsole, visible


def compare_command(arguments: Sequence[str]) -> None:
    """`compare`.

    Args:
        arguments: What follows the command.
    """
    parser = CommandParser(
        prog="lit-semantic-peft compare",
        description="Compares two runs fact by fact (by fact_id): each score in both, second minus first with its 95 % "
        "bootstrap interval of the paired differences over facts, what each cost (unrelated text, known facts, "
        "seconds), the settings that differ, and the facts whose free answer became right (gained) or wrong (lost). "
        "Of more runs each has a column, over the facts that all measured, with the best of a row in bold.",
        epilog="The interval covers the choice of facts, not seeds: two runs of one seed each cannot show which "
        "setting is better.",
    )
    parser.add_argument("first", metavar="RUN_A", help="a run folder that was evaluated (`fit` does it at its end)")
    parser.add_argument("second", metavar="RUN_B", help="another run folder over the same facts")
    parser.add_argument("more", metavar="RUN", nargs="*", default=[], help="further ones")
    parser.add_argument("--only_kept", action="store_true", help="only the facts that every run trained")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="of two runs: write a row per common fact (.csv or .parquet); in CSV an apostrophe precedes a text that a "
        "spreadsheet would run as a formula",
    )
    parser.add_argument("--show", metavar="N", type=int, default=5, help="flipped facts to list of each kind (5)")
    options = parser.parse_args(arguments)
    if options.show < 0:
        raise InputError(f"`--show` must be at least 0, got {options.show}")
    runs = [options.first, options.second, *options.more]
    if options.more and options.output:
        raise InputError(f"`--output` holds the facts of two runs, got {len(runs)} runs")
    if not options.output:  # which is looked at first
        refuse_no_runs(runs)
    if options.more:
        _show_many(runs, options.only_kept)
    else:
        _show_two(options.first, options.second, options.only_kept, options.output, options.show)


def _show_many(runs: Sequence[str], only_kept: bool) -> None:
    from lit_semantic_peft.cli.setting_differences import settings_of_runs
    from lit_semantic_peft.reports import RunFolder
    from lit_semantic_peft.reports.compare_many import compare_many, many_table

    TextConsole().print(many_table(compare_many(runs, only_kept=only_kept), runs))
    differing = settings_of_runs([RunFolder(run).paths.config for run in runs])
    for key, values in differing.items():
        print(visible(f"{key}: {' | '.join(values)}"))


def _show_two(first: str, second: str, only_kept: bool, output: str | None, num_shown: int) -> None:
    from lit_semantic_peft.cli.setting_differences import setting_differences
    from lit_semantic_peft.reports import RunFolder, check_output, compare_runs, difference_table, write_comparison
    from lit_semantic_peft.reports.compare_many import costs, many_table

    if output:
        check_output(output)
    found = compare_runs(first, second, only_kept=only_kept)
    TextConsole().print(difference_table(found, first, second))
    if cost := costs([first, second]):
        TextConsole().print(many_table(cost, [first, second]))
    differences = setting_differences(*(RunFolder(run).paths.config for run in (first, second)))
    for line in ["Settings that differ:", *(f"  {one}" for one in differences)] if differences else []:
        print(visible(line))
    print(f"Facts in common: {len(found.facts)}")
    for count, what in (
        (found.num_only_first, f"only in {first}"),
        (found.num_only_second, f"only in {second}"),
        (
            found.num_kept_differently,
            "trained in one of the runs only, "
            + ("left out" if only_kept else "so their scores compare unlike things"),
        ),
    ):
        if count:
            print(visible(f"Facts {what}: {count}"))
    for name, rows in (("gained", found.gained), ("lost", found.lost)):
        print(f"Facts {name}: {len(rows)}")
        for row in rows[:num_shown]:
            answers = f"{row['answer_first']!r} -> {row['answer_second']!r}"
            print(visible(f"  {row['fact_id']}: {row['prompt']} {row['target']} | {answers}"))
    if output:
        write_comparison(output, found)
        print(visible(f"Written: {Path(output).absolute()} (facts: {len(found.facts)})"))
