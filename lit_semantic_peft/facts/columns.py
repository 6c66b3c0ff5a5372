"""Names of fields: those written in another way than expected, and those that the user maps to the contract."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.contract import FIELDS
from lit_semantic_peft.facts.formats import recognise
from lit_semantic_peft.facts.reading import Reading, Row, described, listed

_PLACE = re.compile(r"\{([^{}]*)\}")


def tidy(name: str) -> str:
    """A field's name as formats write it: lower case, underscores for blanks and hyphens.

    Example:
        >>> tidy(" Target true ")
        'target_true'
    """
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


def renamed_fields(names: Collection[str]) -> dict[str, str]:
    """The fields that are read under another name, so that a capital or a blank in a header costs nothing.

    Args:
        names: The names of all fields of a file.

    Returns:
        The name that is meant, by the name that is there; only names of the contract, or all of them where a published
        format is recognised by nothing else.
    """
    tidied = {name: tidy(name) for name in names}
    if len(set(tidied.values())) < len(tidied):
        return {}
    if not {"prompt", "target"} <= set(tidied.values()):
        if recognise(names) is not None or recognise(tidied.values()) is None:
            return {}
        return {name: meant for name, meant in tidied.items() if name != meant}
    return {name: meant for name, meant in tidied.items() if name != meant and meant in FIELDS}


def with_names(reading: Reading, rows: Iterable[Row], renamed: Mapping[str, str]) -> Iterator[Row]:
    """The rows with `renamed_fields` under the names that are meant; each name is noted.

    Args:
        reading: Collects the notes.
        rows: The rows.
        renamed: The name that is meant, by the name that is there.
    """
    for row in rows:
        for name in row.fields:
            if name in renamed:
                reading.note(row.place, f"field `{name}`, read as `{renamed[name]}`")
        fields = {renamed.get(name, name): value for name, value in row.fields.items()}
        yield Row(row.place, fields, row.cells)


class ColumnMap:
    """Which fields of a file become which fields of the contract, by the user's word.

    Args:
        templates: By field of the contract, either the name of a field of the file, whose value is taken as it is, or a
            text with such names in braces, `{context} {question}`. A name with points leads into objects. What stays of
            other fields of the contract is read as always.

    Raises:
        InputError: If a name is no field of the contract, or a template names nothing.
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        for name, template in templates.items():
            if name not in FIELDS:
                raise InputError(f"`--columns`: expected one of {listed(FIELDS)} before `=`, got `{name}`")
            if not template.strip() or ("{" in template and not _PLACE.search(template)):
                raise InputError(
                    f"`--columns {name}=`: expected a field or a text with fields in braces, got {template!r}"
                )
        self.templates = dict(templates)
        self._found: set[str] = set()

    @property
    def used(self) -> set[str]:
        """The fields of the file that the templates name."""
        return {name for template in self.templates.values() for name in _names(template)}

    @property
    def taken(self) -> frozenset[str]:
        """The fields of the file from which the templates take values: of `answers.text` it is `answers`."""
        return frozenset(name.partition(".")[0] for name in self.used)

    def apply(self, reading: Reading, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows with their fields under the names of the contract.

        A blank is left out with the value that is missing beside it.

        Args:
            reading: Collects the notes about missing values.
            rows: The rows.

        Raises:
            InputError: At the end of the rows, if none of them had a field that is named.
        """
        taken = self.taken
        there: dict[str, None] = {}
        for row in rows:
            there |= dict.fromkeys(row.fields)
            values = {name: self._value(reading, row, template) for name, template in self.templates.items()}
            rest = {name: value for name, value in row.fields.items() if name not in taken}
            yield Row(row.place, rest | values, row.cells)
        missing = self.used - self._found
        if there and missing:
            raise InputError(f"`--columns` names {listed(sorted(missing))}, but {reading.source} has {listed(there)}")

    def _value(self, reading: Reading, row: Row, template: str) -> Any:
        if "{" not in template:
            return self._field(row, template)
        parts = {}
        for name in _names(template):
            value = self._field(row, name)
            if value is None or value == "":
                reading.note(row.place, f"`--columns`: `{name}` holds nothing")
            elif not isinstance(value, str | int | float):
                reading.problem(row.place, f"`--columns`: expected text in `{name}`, got {described(value)}")
            parts[name] = "" if value is None else str(value).strip()
        filled = _PLACE.sub(lambda place: parts[place[1]], template)
        return filled if all(parts.values()) else re.sub(r" {2,}", " ", filled).strip()

    def _field(self, row: Row, name: str) -> Any:
        value: Any = row.fields
        for part in [name] if name in row.fields else name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        self._found.add(name)
        return value[0] if isinstance(value, list) and len(value) == 1 and "." in name else value


def _names(template: str) -> list[str]:
    return _PLACE.findall(template) if "{" in template else [template]
