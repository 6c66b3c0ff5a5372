"""Facts that are in memory, as the rows that a file would have: made by hand, records, a data frame, a data set."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeGuard

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.containers import Table
from lit_semantic_peft.facts.contract import FIELDS
from lit_semantic_peft.facts.libraries import require_default_split, table_rows
from lit_semantic_peft.facts.reading import Place, Row
from lit_semantic_peft.facts.schema import Fact, FactSet, Form, Probe

IN_MEMORY = "facts"
"""Their source in messages: the argument."""

_EXPECTED = (
    "expected the name of a set, a file or a folder, what `read_facts` returned, a list of `Fact` or of records, a "
    "data frame or a data set"
)


class Tabular(Protocol):
    """A data frame of pandas, or a `Dataset` or `DatasetDict` of `datasets`."""

    def to_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Its content, by column."""
        ...


GivenFacts = str | os.PathLike[str] | FactSet | Tabular | Collection[str | os.PathLike[str] | Fact | Mapping[str, Any]]
"""A built-in set, a file, a folder or a Hub data set, or several; what `read_facts` returned; facts; records."""


@dataclass(frozen=True, slots=True)
class Held:
    """Facts that are in memory.

    Attributes:
        table: Their rows.
        has_facts: Whether any is a `Fact`, so that the rows are in the contract.
    """

    table: Table
    has_facts: bool = False


def names_of(source: GivenFacts) -> list[str] | None:
    """The names in a source; None for facts that are in memory.

    Args:
        source: As `read_facts` takes it.
    """
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)]
    if _has_items(source) and len(source) and all(isinstance(one, str | os.PathLike) for one in source):
        return [str(os.fspath(one)) for one in source]
    return None


def _has_items(source: object) -> TypeGuard[Collection[Any]]:
    """Whether it holds one thing after the other: no text, mapping or table, and no set, which has no order."""
    is_other = isinstance(source, str | bytes | Mapping | set | frozenset) or getattr(source, "ndim", 1) != 1
    return isinstance(source, Collection) and not is_other


def set_name(source: GivenFacts) -> str:
    """The source that a user named, or the built-in set that was read; "" for several and for what else is in memory.

    Args:
        source: As `read_facts` takes it.
    """
    if isinstance(source, FactSet):
        is_builtin = all(fact.location.startswith(f"{source.name}:") for fact in source.facts)
        return source.name if is_builtin else ""
    names = names_of(source)
    return names[0] if names is not None and len(names) == 1 else ""


def held_facts(source: object, dataset_split: str) -> Held:
    """The rows of facts in memory.

    Args:
        source: A set that was read, facts, records, a data frame or a data set.
        dataset_split: Which split of a `DatasetDict`.

    Raises:
        InputError: If it is something else, or empty.
    """
    rows = table_rows(IN_MEMORY, source, dataset_split)
    if rows is not None:
        return Held(Table(IN_MEMORY, rows))
    require_default_split(f"`{IN_MEMORY}`", dataset_split)
    items = source.facts if isinstance(source, FactSet) else source
    if not _has_items(items):
        is_one, are_several = isinstance(items, Fact | Mapping), isinstance(items, Iterator | set | frozenset)
        hint = "; put it in a list" if is_one else "; put them in a list" if are_several else ""
        raise InputError(f"`facts`: {_EXPECTED}, got {type(items).__name__}{hint}")
    for number, item in enumerate(items):
        if not isinstance(item, Fact | Mapping):
            raise InputError(f"`facts`: {_EXPECTED}, got a list whose item {number} is of type {type(item).__name__}")
    if not len(items):
        raise InputError("`facts` is empty; expected at least one fact")
    return Held(Table(IN_MEMORY, lambda _: _rows(items)), any(isinstance(item, Fact) for item in items))


def _rows(items: Collection[Fact | Mapping[str, Any]]) -> Iterator[Row]:
    for number, item in enumerate(items, start=1):
        place = Place(IN_MEMORY, number, "record")
        yield _row(place, item) if isinstance(item, Fact) else Row(place, item)


def _row(place: Place, fact: Fact) -> Row:
    """A fact as the record that it would be in a file; fields of another type stay what they are, to be refused."""
    fields = {name: _plain(getattr(fact, name)) for name in FIELDS}
    if fact.id == fact.content_id:
        del fields["id"]  # it changes with what is stripped
    return Row(place, fields, location=fact.location)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [asdict(one) if isinstance(one, Form | Probe) else one for one in value]
    return value
