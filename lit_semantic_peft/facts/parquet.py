"""Reads rows from Parquet files, of which a kilobyte may unpack to many gigabytes."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.libraries import label_names, named_labels
from lit_semantic_peft.facts.opened import opened, require_size
from lit_semantic_peft.facts.reading import Place, Reading, Row, listed

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

_ROWS_AT_ONCE = 256
_BYTES_OF_AN_OBJECT = 16  # of Python, at least: a place in its list, and a number
_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


def parquet_rows(reading: Reading, file: str, path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, a few at a time. A row whose text is not UTF-8 is recorded as a problem.

    Texts that the file holds once are held once, and are counted as often as they are used before a row is made.

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
            require_size(file, _least_size(table))
            columns = table.schema_arrow.names
            if len({*columns}) < len(columns):
                repeated = sorted({name for name in columns if columns.count(name) > 1})
                raise InputError(f"{file}: expected columns of different names, got {listed(repeated)} more than once.")
            names = label_names(table.schema_arrow)
            flat, nested = _text_columns(table)
        if nested:
            _require_nested_size(file, path, nested)
        with pq.ParquetFile(path, read_dictionary=flat) as table:
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                size += sum(map(_size, batch.columns))
                require_size(file, size)
                for row in batch.to_struct_array():
                    number += 1
                    place = Place(file, number, "row")
                    try:
                        fields = row.as_py()
                    except UnicodeDecodeError:
                        reading.problem(place, "expected text in UTF-8, got other bytes. Write the table anew.")
                    except (ValueError, OverflowError) as error:  # a date that Python does not have
                        reading.problem(place, f"expected values that can be read, got one that cannot: {error}")
                    else:
                        yield Row(place, named_labels(fields, names))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: expected a Parquet file, got one that cannot be read: {error}") from error


def _text_columns(table: "ParquetFile") -> tuple[list[str], list[str]]:
    """Paths of the columns of texts, and of those that are inside of lists or structures."""
    columns = map(table.schema.column, range(len(table.schema)))
    paths = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    top = set(table.schema_arrow.names)
    return [path for path in paths if path in top], [path for path in paths if path not in top]


def _require_nested_size(file: str, path: Path, columns: Sequence[str]) -> None:
    """Refuses texts in lists and structures that are larger than `LARGEST_FILE`, before they are unpacked.

    Those of a group of rows are measured up to where its writer went over from texts held once to others: there Arrow
    reads no more of them as texts held once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = 0
    with pq.ParquetFile(path, read_dictionary=columns) as table:
        for group in range(table.metadata.num_row_groups):
            with suppress(pa.ArrowNotImplementedError):
                for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    size += sum(map(_size, batch.columns))
                    require_size(file, size)


def _least_size(table: "ParquetFile") -> int:
    """Bytes that the columns need at least in memory, by what the file says of itself.

    Of values in lists these are all of them as Arrow holds them, or those of the rows that are made at once, which are
    objects of Python.
    """
    at_once = min(1.0, _ROWS_AT_ONCE / max(1, table.metadata.num_rows))
    stored, held, made = 0, 0, 0.0
    for group in map(table.metadata.row_group, range(table.metadata.num_row_groups)):
        for place in range(group.num_columns):
            column, found = table.schema.column(place), group.column(place)
            stored += found.total_uncompressed_size
            if column.max_repetition_level:
                held += found.num_values * max(column.length, _WIDTHS.get(column.physical_type, 1))
                made += found.num_values * at_once * _BYTES_OF_AN_OBJECT
    return max(stored, held, int(made))


def _size(array: "pa.Array") -> int:
    """Bytes of the values, each text counted as often as it is used."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(_size, array.flatten()))
    if pa.types.is_map(kind):
        return _size(array.keys) + _size(array.items)
    if pa.types.is_nested(kind):
        return _size(array.flatten())
    return int(array.nbytes)
