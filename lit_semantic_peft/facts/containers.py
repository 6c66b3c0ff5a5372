"""Reads rows from files: JSON lines, JSON arrays, text tables, Parquet, saved `datasets` folders, the Hub."""

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.builtin import BUILTIN
from lit_semantic_peft.facts.reading import Place, Reading, Row, cut, listed, shown

SUFFIXES: tuple[str, ...] = (
    *(".jsonl", ".jsonl.gz", ".json", ".json.gz"),
    *(".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"),
)
"""Suffixes of the files that can be read."""

HeaderCheck = Callable[[list[str], str], str | None]
"""Takes a header and its separator; returns what is wrong with the header, None if nothing is."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LARGEST_CELL = 2**24
_WHITE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file or data set.

    Attributes:
        file: Its name in messages.
        rows: Its rows, read lazily. A row that cannot be parsed is recorded as a problem of the reading.
    """

    file: str
    rows: Iterator[Row]


def open_source(reading: Reading, source: str, dataset_split: str, header_problem: HeaderCheck) -> list[Table]:
    """Finds the files of a source. Their rows are read lazily.

    Args:
        reading: Collects the problems that are found while rows are read.
        source: A file, a folder written by `datasets.save_to_disk`, a folder of files, or a Hub name `owner/name`.
        dataset_split: Which split of a `datasets` folder or a Hub set to read.
        header_problem: Checks the header of a text table.

    Returns:
        The files. Those of a folder are sorted by name.

    Raises:
        InputError: If there is nothing to read.
    """
    if not source.strip():
        raise InputError("`facts`: expected a file, a folder or a name, got an empty text.")
    path = Path(source).expanduser()
    if path.is_file():
        return [_open_file(reading, source, path, header_problem)]
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            return [Table(source, _saved_dataset_rows(source, path, dataset_split))]
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        if not files:
            raise InputError(
                f"{source}: expected a folder written by `datasets.save_to_disk`, or one with files that end in "
                f"{listed(SUFFIXES)}, got one that holds neither."
            )
        return [_open_file(reading, str(Path(source) / file.relative_to(path)), file, header_problem) for file in files]
    if _HUB_NAME.fullmatch(source) and not source.endswith(SUFFIXES) and not path.parent.is_dir():
        return [Table(source, _hub_rows(source, dataset_split))]
    raise InputError(_missing(source, path))


def short_name(source: str) -> str:
    """Name of the file without its suffix, of the folder, or of the Hub set without its owner."""
    name = Path(source).name
    return next((name.removesuffix(suffix) for suffix in _longest_first(SUFFIXES) if name.endswith(suffix)), name)


def _longest_first(suffixes: Iterable[str]) -> list[str]:
    return sorted(suffixes, key=len, reverse=True)


def _missing(source: str, path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    near_names = [str(path.parent / name) for name in near] + difflib.get_close_matches(source, BUILTIN, n=1)
    meant = f" Did you mean {listed(near_names)}?" if near_names else ""
    if not path.parent.is_dir():
        meant += f" The folder {str(path.parent)!r} does not exist either."
    return (
        f"`facts`: expected a file, a folder of `datasets`, a Hub name `owner/name` or a built-in set "
        f"({listed(BUILTIN)}), got {source!r}, which does not exist.{meant}"
    )


def _open_file(reading: Reading, file: str, path: Path, header_problem: HeaderCheck) -> Table:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet") and path.suffix != ".gz":
        return Table(file, _parquet_rows(file, path))
    if name.endswith(".jsonl"):
        return Table(file, _jsonl_rows(reading, file, path))
    if name.endswith(".json"):
        return Table(file, _json_rows(reading, file, path))
    if name.endswith((".csv", ".tsv")):
        return Table(file, _delimited_rows(reading, file, path, "," if name.endswith(".csv") else "\t", header_problem))
    raise InputError(f"{file}: expected a file that ends in {listed(SUFFIXES)}, got {path.name!r}.")


def _read_bytes(file: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except EOFError as error:
            raise InputError(
                f"{file}: expected a whole gzip file, got one that is cut short. Copy or download it again."
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{file}: expected a gzip file, got something else or a broken one ({error}). "
                "Compress it again, or drop `.gz` from its name if it is plain text."
            ) from error
    return data.removeprefix(_BYTE_ORDER_MARK)


def _read_text(reading: Reading, file: str, path: Path) -> str | None:
    """The whole file as text. None if it is not UTF-8: this is recorded as a problem of the line."""
    data = _read_bytes(file, path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        start_of_line = data.rfind(b"\n", 0, error.start) + 1
        reading.problem(Place(file, number, "line"), _not_utf8(data[start_of_line:], error, start_of_line))
        return None


def _not_utf8(line: bytes, error: UnicodeDecodeError, start_of_line: int = 0) -> str:
    position = error.start - start_of_line
    return f"expected UTF-8, got the byte 0x{line[position]:02x} at position {position + 1}. Save the file as UTF-8."


# --- JSON -----------------------------------------------------------------------------------------------------------


def _jsonl_rows(reading: Reading, file: str, path: Path) -> Iterator[Row]:
    # Split at \n only: JSON text may contain other characters that Python treats as line breaks.
    for number, line in enumerate(io.BytesIO(_read_bytes(file, path)), start=1):
        if not line.strip():
            continue
        place = Place(file, number, "line")
        try:
            row = json.loads(line.rstrip(b"\n").decode("utf-8"))
        except UnicodeDecodeError as error:
            reading.problem(place, _not_utf8(line, error))
        except (ValueError, RecursionError) as error:
            reading.problem(place, f"expected a JSON object, got {_broken_json(error)}")
        else:
            yield from _object_row(reading, place, row)


def _json_rows(reading: Reading, file: str, path: Path) -> Iterator[Row]:
    """Records of a JSON array, parsed one at a time. Some publishers write JSON lines under this suffix too."""
    text = _read_text(reading, file, path)
    if text is None:
        return
    position = _after_white(text, 0)
    if not text.startswith("[", position):
        if _is_one_object(text):
            raise InputError(
                f"{file}: expected an array of records, or one record a line, got one object over the whole file. "
                "Write the array of its records alone."
            )
        yield from _jsonl_rows(reading, file, path)
        return
    decoder = json.JSONDecoder()
    position = _after_white(text, position + 1)
    number = 0
    while not text.startswith("]", position):
        number += 1
        place = Place(file, number, "record")
        try:
            row, position = decoder.raw_decode(text, position)
            position = _after_white(text, position)
            if not text.startswith((",", "]"), position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except (ValueError, RecursionError) as error:
            # After a broken record the start of the next one is unknown: reading stops here.
            where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            reading.problem(place, f"expected a JSON object, got {_broken_json(error)}{where}")
            return
        yield from _object_row(reading, place, row)
        if text.startswith(",", position):
            position = _after_white(text, position + 1)
    rest = _after_white(text, position + 1)
    if rest < len(text):
        place = Place(file, number, "record")
        reading.problem(place, f"expected the end of the file after the array, got {shown(text[rest : rest + 80])}")


def _after_white(text: str, position: int) -> int:
    found = _WHITE.match(text, position)
    return found.end() if found else position


def _is_one_object(text: str) -> bool:
    """Whether the text is a single JSON object that is spread over several lines."""
    first_line = text.lstrip().partition("\n")[0]
    try:
        json.loads(first_line)
    except (ValueError, RecursionError):
        try:
            return isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            return False
    return False


def _object_row(reading: Reading, place: Place, row: Any) -> Iterator[Row]:
    if isinstance(row, dict):
        yield Row(place, row)
    else:
        reading.problem(place, f'expected a JSON object such as {{"prompt": ..., "target": ...}}, got {shown(row)}')


def _broken_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "JSON that is nested too deeply"
    if not isinstance(error, json.JSONDecodeError):  # Python reads no number of thousands of digits
        return "JSON with a number of too many digits"
    return f"broken JSON: {error.msg} at character {error.colno}"


# --- Text tables ----------------------------------------------------------------------------------------------------


def _delimited_rows(
    reading: Reading, file: str, path: Path, delimiter: str, header_problem: HeaderCheck
) -> Iterator[Row]:
    text = _read_text(reading, file, path)
    if text is None:
        return
    csv.field_size_limit(_LARGEST_CELL)  # a cell may hold a whole text
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    next_number = 1
    try:
        for cells in table:
            # A quoted cell may contain line breaks: a row is located by the line on which it starts.
            place, next_number = Place(file, next_number, "line"), table.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                problem = _repeated(header) or header_problem(header, delimiter)
                if problem:
                    reading.problem(place, problem)
                    return
            elif len(cells) != len(header):
                reading.problem(place, f"expected {len(header)} cells as in the header, got {len(cells)}")
            else:
                yield Row(place, dict(zip(header, cells, strict=True)), cells=True)
    except csv.Error as error:
        place = Place(file, next_number, "line")
        reading.problem(place, f"expected {_TABLE_NAMES[delimiter]}, got a row that cannot be parsed: {error}")


def _repeated(header: list[str]) -> str | None:
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    return f"expected a header that names each column once, got {listed(repeated)} more than once" if repeated else None


_TABLE_NAMES = {",": "CSV", "\t": "TSV"}


# --- Tables of other libraries --------------------------------------------------------------------------------------


def _parquet_rows(file: str, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            yield from _numbered(file, (row for batch in table.iter_batches() for row in batch.to_pylist()))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: expected a Parquet file, got one that cannot be read: {error}") from error


def _saved_dataset_rows(source: str, path: Path, dataset_split: str) -> Iterator[Row]:
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
    return _numbered(source, loaded)


def _hub_rows(source: str, dataset_split: str) -> Iterator[Row]:
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
    return _numbered(source, loaded)


def _numbered(file: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(Place(file, number, "row"), fields) for number, fields in enumerate(rows, start=1))
