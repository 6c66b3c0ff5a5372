"""One pass over one source: where a row stands, what was wrong with it, and how that is said."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_MAX_PROBLEMS = 20
_MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a row stands.

    Attributes:
        file: The file, as messages name it.
        number: Position in the file, from 1.
        unit: What the number counts: `line` in a text file, `record` in a JSON array, `row` in a table.
    """

    file: str
    number: int
    unit: Literal["line", "record", "row"]

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"

    @property
    def location(self) -> str:
        """Short form for a fact's `location`: `facts.jsonl:7`, `facts.parquet:row 7`."""
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file}:{self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it came out of a file.

    Attributes:
        place: Where it stands.
        fields: Its fields, as the file spells them.
        cells: Whether the values are cells of a text table, where a list is text that must be parsed.
    """

    place: Place
    fields: Mapping[str, Any]
    cells: bool = False


@dataclass
class Reading:
    """What was wrong with a source and what was repaired.

    Attributes:
        source: As the user gave it.
        problems: Place and sentence of each problem; any makes the source unusable.
        notes: For each sentence about a repair, the places that it is true of.
    """

    source: str
    problems: list[tuple[Place, str]] = field(default_factory=list)
    notes: dict[str, list[Place]] = field(default_factory=dict)

    def problem(self, place: Place, sentence: str) -> None:
        """Notes a problem."""
        self.problems.append((place, sentence))

    def field_problem(self, place: Place, name: str, expected: str, got: str) -> None:
        """Notes a field that does not hold what it must."""
        self.problem(place, f"field `{name}`: expected {expected}, got {got}")

    def note(self, place: Place, sentence: str) -> None:
        """Notes a repair."""
        self.notes.setdefault(sentence, []).append(place)

    def short(self, place: Place) -> str:
        """The place without the file where there is only one."""
        return f"{place.unit} {place.number}" if place.file == self.source else str(place)

    def problem_report(self) -> str:
        """All problems in the order of the source, the first 20 of them in full."""
        in_order = sorted(self.problems, key=lambda problem: problem[0])
        lines = [f"{place}: {sentence}" for place, sentence in in_order[:_MAX_PROBLEMS]]
        if len(in_order) > _MAX_PROBLEMS:
            lines.append(f"... and {len(in_order) - _MAX_PROBLEMS} more")
        return "\n".join(lines)

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each kind of repair, with the first place."""
        return tuple(
            f"{self.source}: {sentence} ({self.short(places[0])}"
            + (f" and {len(places) - 1} more)" if len(places) > 1 else ")")
            for sentence, places in self.notes.items()
        )


def described(value: Any) -> str:
    """What a value is, for the end of "expected ..., got ..."."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {shown(value)}"
        case int() | float():
            return f"the number {value}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "an object"
        case _:
            return f"a value of type {type(value).__name__}"


def shown(value: Any) -> str:
    """The value itself, cut where it is long."""
    return cut(repr(value), _MAX_SHOWN_CHARACTERS)


def cut(text: str, length: int) -> str:
    """The text, at most `length` characters of it."""
    return text if len(text) <= length else text[: length - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Names in backticks, for a message."""
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def unspellable(value: str) -> str | None:
    """What is wrong with a text that no file can hold, else None: JSON can spell half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return f"{shown(value)}, which holds half a character (a lone surrogate)"
    return None
