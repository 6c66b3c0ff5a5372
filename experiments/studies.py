"""What the studies share before and after their runs: settings by name, exit status, tables, parts of pages."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextArgumentParser

SettingT = TypeVar("SettingT")

END = "<!-- End of what is made. -->"
"""Behind the part of a page that is made from results."""


class Cancelled(BaseException):
    """The process was asked to end: no error, so that nothing that handles errors takes it for one."""


def setting_path(name: str, folder: Path) -> Path:
    """The YAML file of a setting.

    Args:
        name: Name of a file in the folder, or the path of another file.
        folder: Where the study keeps its settings.

    Raises:
        InputError: If there is no such file.
    """
    for path in (folder / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
    raise InputError(f"`setting` must be one of {known}, or a YAML file, got {name!r}")


def study_parser(
    name: str, about: str | None, commands: Mapping[str, str], *, settings: str, default: str, processes: str
) -> tuple[TextArgumentParser, dict[str, TextArgumentParser]]:
    """The command line that all studies have.

    Args:
        name: Of the package.
        about: What the study is.
        commands: What each command does; those that take time are `run` and `rates`.
        settings: The settings by name.
        default: Of these, the one that is taken where none is given.
        processes: How many trainings run side by side where the user does not say it.

    Returns:
        The parser, and that of each command, for what a study has of its own.
    """
    parser = TextArgumentParser(prog=f"python -m {name}", description=about)
    subparsers = parser.add_subparsers(dest="command", required=True)
    added = {}
    for command, does in commands.items():
        one = added[command] = subparsers.add_parser(command, help=does, description=does)
        one.add_argument("--setting", default=default, help=f"{settings}, or a YAML file (default: {default})")
        one.add_argument("--results", type=Path, help="another folder for the results")
        if command in ("run", "rates"):
            number = int(processes) if processes.isdecimal() else None
            said = f"trainings side by side (default: {processes})"
            one.add_argument("--processes", type=int, default=number, help=said)
            one.add_argument("--minutes", type=float, help="begin no run later")
    return parser, added


def exit_status(command: Callable[[], int | None]) -> int:
    """The exit status of a command: its own, 0 where it gives none, 2 where the input cannot be used, which is said.

    Args:
        command: The command.
    """
    try:
        return command() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def print_results(
    names: Iterable[str],
    read: Callable[[str], Mapping[str, Any] | None],
    in_one_line: Callable[[Mapping[str, Any]], str],
) -> None:
    """Prints a line for each run.

    Args:
        names: Of the runs.
        read: Gives the result of a run, None where there is none.
        in_one_line: What a run that is done gave.
    """
    for name in names:
        found = read(name)
        said = "missing" if found is None else found["status"]
        print(f"{name:60} {in_one_line(found) if found and said == 'done' else said}")


def status_of_runs(run_all: Callable[[], int], **limits: float | None) -> int:
    """The exit status of a command that runs what is missing.

    Args:
        run_all: Gives how many runs failed.
        limits: Numbers that the user gave, by name of the option.

    Raises:
        InputError: If one of them is not above 0.
    """
    for name, value in limits.items():
        if value is not None and value <= 0:
            raise InputError(f"`{name}` must be above 0, got {value}")
    try:
        return int(run_all() > 0)
    except (Cancelled, KeyboardInterrupt):
        print("cancelled; the same command goes on where this one was", file=sys.stderr)
        return 1


def run_missing(
    run_all: Callable[[SettingT, int, float | None, Sequence[str]], int], setting: SettingT, options: argparse.Namespace
) -> int:
    """The exit status of `run` with the options of `study_parser` and `--only`.

    Args:
        run_all: Runs what is missing and gives how many runs failed.
        setting: The setting.
        options: The parsed arguments.
    """
    return status_of_runs(
        lambda: run_all(setting, options.processes, options.minutes, options.only),
        processes=options.processes,
        minutes=options.minutes,
    )


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table whose columns are the keys of its first row.

    Args:
        rows: At least one.
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def with_section(text: str, section: str, begin: str) -> str:
    """A page with the part exchanged that is made from results.

    Args:
        text: The page.
        section: What to put between the mark and `END`.
        begin: The mark before it.

    Raises:
        InputError: If the marks are missing.
    """
    before, mark, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise InputError(f"the page must hold the lines {begin!r} and {END!r}, with what is made between them")
    return f"{before}{begin}\n\n{section}\n{END}{after}"
