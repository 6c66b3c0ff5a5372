"""One pass over one source: the location of each row, its problems, and the messages about them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_semantic_peft.errors import InputError

_MAX_PROBLEMS = 20
_MAX_COUNTED = 10_000
_MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Location of a row.

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
    """One row as read from a file.

    Attributes:
        place: Its location.
        fields: Its fields, under the names that they have in the file.
        cells: Whether the values are cells of a text table, where a list is text that must be parsed.
        location: Where its fact was read before; "" for its place.
    """

    place: Place
    fields: Mapping[str, Any]
    cells: bool = False
    location: str = ""


@dataclass
class Reading:
    """Problems and repairs of a source.

    Attributes:
        source: As the user gave it.
        problems: Location and message of each problem. Any problem makes the source unusable.
        notes: For each message about a repair, the locations that it applies to.
        has_stopped: Whether a problem made it impossible to read the rest of a file.
        goes_on: Whether the rest is read however many problems there are.
    """

    source: str
    problems: list[tuple[Place, str]] = field(default_factory=list)
    notes: dict[str, list[Place]] = field(default_factory=dict)
    has_stopped: bool = False
    goes_on: bool = False

    def problem(self, place: Place, sentence: str, *, ends_reading: bool = False) -> None:
        """Records a problem, which may make it impossible to read the rest of the file.

        Raises:
            InputError: If there are so many that no more of the file is read.
        """
        self.problems.append((place, sentence))
        if len(self.problems) >= _MAX_COUNTED and not self.goes_on:
            raise InputError(f"{self.problem_report()}. Nothing behind {place} was read.")
        self.has_stopped |= ends_reading

    def field_problem(self, place: Place, name: str, expected: str, got: str) -> None:
        """Records a field with an invalid value."""
        self.problem(place, f"field `{name}`: expected {expected}, got {got}")

    def note(self, place: Place, sentence: str) -> None:
        """Records a repair."""
        self.notes.setdefault(sentence, []).append(place)

    def short(self, place: Place) -> str:
        """The location, without the file's name if the source is one file."""
        return f"{place.unit} {place.number}" if place.file == self.source else str(place)

    def problem_report(self) -> str:
        """The first 20 problems in the order of the source, and the number of further ones."""
        in_order = sorted(self.problems, key=lambda problem: problem[0])
        lines = [f"{place}: {sentence}" for place, sentence in in_order[:_MAX_PROBLEMS]]
        if len(in_order) > _MAX_PROBLEMS:
            lines.append(f"... and {len(in_order) - _MAX_PROBLEMS} more")
        return "\n".join(lines)

    def warnings(self) -> tuple[str, ...]:
        """One message for each kind of repair, with its first location."""
        return tuple(
            f"{self.source}: {sentence} ({self.short(places[0])}"
            + (f" and {len(places) - 1} more)" if len(places) > 1 else ")")
            for sentence, places in self.notes.items()
        )


def described(value: Any) -> str:
    """Describes a value, for the end of "expected ..., got ..."."""
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
    """`repr` of the value, truncated if long."""
    return cut(repr(value), _MAX_SHOWN_CHARACTERS)


def cut(text: str, length: int) -> str:
    """The text, truncated to at most `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Names in backticks, for a message."""
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def unencodable(value: str) -> str | None:
    """Why a text cannot be encoded as UTF-8, else None: JSON can escape one half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return f"{shown(value)}, which holds half a character (a lone surrogate)"
    return None
