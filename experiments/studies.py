"""What the studies share before and after their runs: settings by name, exit status, tables, parts of pages."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_semantic_peft.errors import InputError

END = "<!-- End of what is made. -->"
"""Behind the part of a page that is made from results."""


class Cancelled(Exception):
    """The process was asked to end."""


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
