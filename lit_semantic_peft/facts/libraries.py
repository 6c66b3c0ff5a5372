"""Reads rows from the tables of `datasets` and pandas."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.builtin import BUILTIN
from lit_semantic_peft.facts.reading import Place, Reading, Row, cut, listed

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

DEFAULT_DATASET_SPLIT = "train"


def require_default_split(source: str, dataset_split: str) -> None:
    """Refuses to read all of a source that has no splits where one of them was asked for.

    Args:
        source: What was named.
        dataset_split: Which split was asked for.

    Raises:
        InputError: If it is not the default.
    """
    if dataset_split != DEFAULT_DATASET_SPLIT:
        raise InputError(
            f"`dataset_split` is {dataset_split!r}, but {source} has no splits and would be read whole. Leave it out."
        )


def split_of(source: str, loaded: Any, dataset_split: str) -> "Dataset":
    """One split of a `DatasetDict`.

    Args:
        source: Its name in messages.
        loaded: The `DatasetDict`.
        dataset_split: Which split.

    Raises:
        InputError: If there is no such split.
    """
    if dataset_split not in loaded:
        raise InputError(
            f"`dataset_split`: expected one of {listed(loaded)}, which {source} has, got {dataset_split!r}"
        )
    split: Dataset = loaded[dataset_split]
    return split


def hub_rows(source: str, dataset_split: str) -> Callable[[Reading], Iterator[Row]]:
    """Loads a data set of the Hub; what is returned gives its rows.

    Raises:
        InputError: If it cannot be loaded.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(source, split=dataset_split)
    except Exception as error:  # network, name, rights, format: each raises its own class
        raise InputError(
            f"`facts`: {source!r} is neither a file here nor a built-in set ({listed(BUILTIN)}), and loading it from "
            f"the Hub failed: {type(error).__name__}: {cut(str(error), 300)}. Check the name and `dataset_split` "
            f"({dataset_split!r}). Without network: load it where there is one, write it with `save_to_disk`, and "
            "give that folder."
        ) from error
    return lambda reading: dataset_rows(source, loaded)


def table_rows(file: str, table: object, dataset_split: str) -> Callable[[Reading], Iterator[Row]] | None:
    """The rows of a data frame of pandas or of a data set that is in memory; None for anything else.

    Args:
        file: Their name in messages.
        table: What may be one.
        dataset_split: Which split of a `DatasetDict`.

    Raises:
        InputError: If there is no such split or none at all, or the frame's columns have no one type each.
    """
    if _is_a("datasets", "DatasetDict", table):
        return lambda reading: dataset_rows(file, split_of(file, table, dataset_split))
    if _is_a("datasets", "Dataset", table):
        require_default_split(f"`{file}`", dataset_split)
        return lambda reading: dataset_rows(file, table)
    if _is_a("pandas", "DataFrame", table):
        require_default_split(f"`{file}`", dataset_split)
        return lambda reading: _frame_rows(file, table)
    return None


def _is_a(module: str, name: str, value: object) -> bool:
    """Whether it is of a class of a library, which need not be installed."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _frame_rows(file: str, frame: Any) -> Iterator[Row]:
    import pyarrow as pa

    try:
        rows = pa.Table.from_pandas(frame, preserve_index=False).to_pylist()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"`{file}`: the data frame cannot be read as records: {cut(str(error), 300)}") from error
    return (Row(Place(file, number, "row"), fields) for number, fields in enumerate(rows, start=1))


def dataset_rows(file: str, rows: "Dataset") -> Iterator[Row]:
    """The rows of a data set, with the names of classes in place of their numbers.

    Args:
        file: Its name in messages.
        rows: The data set.

    Raises:
        InputError: If a row cannot be read.
    """
    names = label_names(rows.features.arrow_schema)
    number = 0
    try:
        for number, fields in enumerate(rows, start=1):
            yield Row(Place(file, number, "row"), named_labels(fields, names))
    except Exception as error:  # a column is decoded by a library of its kind, such as of pictures
        said = f"{type(error).__name__}: {cut(str(error), 300)}"
        raise InputError(f"{Place(file, number + 1, 'row')}: expected values that can be read, got {said}") from error


def label_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """The names of the classes of each column that holds their numbers (`datasets.ClassLabel`)."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {}) if isinstance(described, dict) else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def named_labels(fields: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    """The fields with the name of a class in place of its number; -1 is no class."""

    def named(known: list[str], value: Any) -> Any:
        if not isinstance(value, int):
            return value
        return known[value] if 0 <= value < len(known) else None

    labels = {column: named(known, fields.get(column)) for column, known in names.items()}
    return {**fields, **labels} if labels else fields
