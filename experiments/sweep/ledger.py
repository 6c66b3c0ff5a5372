"""What was found for each cell, a line of JSON each, so that a sweep goes on where it ended."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Status = Literal["pass", "refused", "not built", "wrong", "error"]
GOOD: tuple[Status, ...] = ("pass", "refused", "not built")


class Cell(NamedTuple):
    """A model family and an adapter type."""

    family: str
    method: str


@dataclass(frozen=True)
class Outcome:
    """What was found for a cell.

    Attributes:
        family: The model family.
        method: The adapter type.
        status: `pass`: every check held. `refused`: an input error says why. `not built`: transformers makes no small
            model of the family. `wrong`: a check failed. `error`: anything else was raised, or time ran out.
        detail: The message of what is no pass.
        notes: What is done the slow way, and what is refused beside the checks.
        seconds: How long it took.
    """

    family: str
    method: str
    status: Status
    detail: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def cell(self) -> Cell:
        """What was checked."""
        return Cell(self.family, self.method)


class Ledger:
    """A file of outcomes; the last line of a cell counts.

    Args:
        path: The file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[Cell, Outcome]:
        """Every cell that was checked."""
        if not self.path.is_file():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        outcomes = [Outcome(**{**(found := json.loads(line)), "notes": tuple(found["notes"])}) for line in lines]
        return {one.cell: one for one in outcomes}

    def add(self, outcome: Outcome) -> None:
        """Adds a line.

        Args:
            outcome: What was found.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")

    def open_cells(self, cells: Iterable[Cell], *, again: bool) -> list[Cell]:
        """The cells that have not been checked.

        Args:
            cells: All of them.
            again: Whether those that were wrong or failed count too.
        """
        known = self.read()
        done = {cell for cell, one in known.items() if not again or one.status in GOOD}
        return [cell for cell in cells if cell not in done]
