"""Reads rows from the tables of other libraries: Parquet, folders and Hub sets of `datasets`."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.builtin import BUILTIN
from lit_semantic_peft.facts.opened import opened, require_size
from lit_semantic_peft.facts.reading import Place, Reading, Row, cut, listed

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_ROWS_AT_ONCE = 256


def parquet_rows(reading: Reading, file: str, path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, a few at a time. A row whose text is not UTF-8 is recorded as a problem.

    Raises:
        InputError: If the file cannot be read, or its rows are larger than `LARGEST_FILE`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(file, path):  # names a Git LFS pointer, and a file that cannot be opened
        pass
    size, number = 0, 0
    try:
        with pq.ParquetFile(path) as table:
            label_names = _label_names(table.schema_arrow)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                size += batch.nbytes
                require_size(file, size)
                for row in batch.to_struct_array():
                    number += 1
                    place = Place(file, number, "row")
                    try:
                        fields = row.as_py()
                    except UnicodeDecodeError:
                        reading.problem(place, "expected text in UTF-8, got other bytes. Write the table anew.")
                    else:
                        yield Row(place, _named_labels(fields, label_names))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: expected a Parquet file, got one that cannot be read: {error}") from error


def saved_dataset_rows(source: str, path: Path, dataset_split: str) -> Callable[[Reading], Iterator[Row]]:
    """Loads a folder written by `datasets.save_to_disk`; what is returned gives its rows.

    Raises:
        InputError: If the folder cannot be loaded, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder can make `datasets` raise anything
        raise InputError(f"{source}: `datasets` cannot load this folder: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if dataset_split not in loaded:
            raise InputError(
                f"`dataset_split`: expected one of {listed(loaded)}, which {source} has, got {dataset_split!r}"
            )
        loaded = loaded[dataset_split]
    return lambda reading: _numbered(source, loaded)


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
    return lambda reading: _numbered(source, loaded)


def _numbered(file: str, rows: "Dataset") -> Iterator[Row]:
    names = _label_names(rows.features.arrow_schema)
    return (
        Row(Place(file, number, "row"), _named_labels(fields, names)) for number, fields in enumerate(rows, start=1)
    )


def _label_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """The names of the classes of each column that holds their numbers (`datasets.ClassLabel`)."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {}) if isinstance(described, dict) else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _named_labels(fields: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    """The fields with the name of a class in place of its number; -1 is no class."""

    def named(known: list[str], value: Any) -> Any:
        if not isinstance(value, int):
            return value
        return known[value] if 0 <= value < len(known) else None

    labels = {column: named(known, fields.get(column)) for column, known in names.items()}
    return {**fields, **labels} if labels else fields
