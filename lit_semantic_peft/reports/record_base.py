"""What every record of a run's JSON files has in common."""

import json
import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from lit_semantic_peft.errors import InputError

STRICT = ConfigDict(strict=True, extra="forbid")  # "1" is no number, and a field that nobody knows is an error

_EXPECTED = {
    "bool_type": "bool", "dataclass_type": "an object", "dict_type": "an object", "float_type": "float",
    "int_type": "int", "string_type": "str", "tuple_type": "a list",
}  # fmt: skip


def or_unmeasured(value: float | None) -> float | None:
    """The number, or None where it is not finite."""
    return value if value is None or math.isfinite(value) else None


Measured = Annotated[float | None, AfterValidator(or_unmeasured)]
"""A number that may not have been measured: None, which NaN and the infinities become, since JSON has none of them."""


class Record:
    """To and from plain JSON types, for records of numbers, texts, mappings and one another."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types, in their order; None and NaN are "not measured"."""
        value: dict[str, Any] = json.loads(TypeAdapter(type(self)).dump_json(self))
        return value

    @classmethod
    def from_json(cls, value: Any, where: str = "record") -> Self:
        """Builds the record from JSON types; a missing optional field has its default.

        Args:
            value: What `to_json` gave.
            where: Name of the value in messages.

        Raises:
            InputError: A field is unknown, missing or of another type; all such fields are named.
        """
        try:  # as JSON text: of Python values the strict reader takes no list for a tuple
            return TypeAdapter(cls).validate_json(json.dumps(value))
        except ValidationError as error:
            raise InputError("\n".join(_problems(error, where))) from error


def _problems(error: ValidationError, where: str) -> list[str]:
    """A line for each value of another type, and one for all unknown or missing fields of an object."""
    names: dict[tuple[str, str], list[str]] = {}
    lines = []
    for problem in error.errors(include_url=False):
        kind, place = problem["type"], problem["loc"]
        if kind in ("unexpected_keyword_argument", "missing"):
            what = "missing" if kind == "missing" else "unknown"
            names.setdefault((_path(where, place[:-1]), what), []).append(str(place[-1]))
        else:
            expected = _EXPECTED.get(kind, problem["msg"])
            lines.append(f"`{_path(where, place)}`: expected {expected}, got {problem['input']!r}")
    lines += [f"`{path}`: {what} field(s) {', '.join(found)}" for (path, what), found in names.items()]
    if any(what == "unknown" for _, what in names):
        lines.append("Another version of lit-semantic-peft may have written it; evaluate the run anew with this one.")
    return lines


def _path(where: str, place: tuple[int | str, ...]) -> str:
    return where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
