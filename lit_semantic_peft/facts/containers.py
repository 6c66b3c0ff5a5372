"""Reads rows from files: JSON lines, JSON arrays, text tables, Parquet, saved `datasets` folders, the Hub."""

import csv
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.builtin import BUILTIN
from lit_semantic_peft.facts.json_files import json_rows, jsonl_rows
from lit_semantic_peft.facts.libraries import hub_rows, require_default_split
from lit_semantic_peft.facts.opened import LARGEST_LINE, lines, not_utf8, opened, require_records
from lit_semantic_peft.facts.parquet import parquet_rows
from lit_semantic_peft.facts.reading import Place, Reading, Row, cut, listed
from lit_semantic_peft.facts.saved_datasets import saved_dataset_rows

SUFFIXES: tuple[str, ...] = (
    *(".jsonl", ".jsonl.gz", ".json", ".json.gz"),
    *(".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"),
)
"""Suffixes of the files that can be read."""

HeaderCheck = Callable[[list[str]], str | None]
"""Takes a header; returns what is wrong with it, None if nothing is."""

_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file or data set.

    Attributes:
        file: Its name in messages.
        rows: Reads its rows anew, one by one. A row that cannot be parsed is recorded as a problem of the reading that
            is given.
    """

    file: str
    rows: Callable[[Reading], Iterator[Row]]


def open_source(source: str, dataset_split: str, header_problem: HeaderCheck) -> list[Table]:
    """Finds the files of a source. Their rows are read lazily.

    Args:
        source: A file, a folder written by `datasets.save_to_disk`, a folder of files, or a Hub name `owner/name`.
        dataset_split: Which split of a `datasets` folder or a Hub set to read.
        header_problem: Checks the header of a text table.

    Returns:
        The files. Those of a folder are sorted by name; names that begin with a full stop are skipped.

    Raises:
        InputError: If there is nothing to read.
    """
    path = located(source)
    if path is None:
        return [Table(source, hub_rows(source, dataset_split))]
    try:
        if path.is_file():
            require_default_split(source, dataset_split)
            return [_open_file(source, path, header_problem)]
        return _open_folder(source, path, dataset_split, header_problem)
    except OSError as error:
        raise _unreadable(source, error) from error


def located(source: str) -> Path | None:
    """The file or folder that a source names; None for a name of the Hub.

    Args:
        source: As of `open_source`.

    Raises:
        InputError: If it names nothing.
    """
    if not source.strip():
        raise InputError("`facts`: expected a file, a folder or a name, got an empty text.")
    path = Path(source).expanduser()
    try:
        if path.is_file() or path.is_dir():
            return path
        if path.exists():
            raise InputError(f"`facts`: expected a file or a folder, got {source!r}, which is neither.")
    except OSError as error:
        raise _unreadable(source, error) from error
    if _HUB_NAME.fullmatch(source) and not source.endswith(SUFFIXES) and not path.parent.is_dir():
        return None
    raise InputError(_missing(source, path))


def _unreadable(source: str, error: OSError) -> InputError:
    return InputError(f"`facts`: {cut(source, 300)!r} cannot be read: {error.strerror or error}")


def _open_folder(source: str, path: Path, dataset_split: str, header_problem: HeaderCheck) -> list[Table]:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return [Table(source, saved_dataset_rows(source, path, dataset_split))]
    files = sorted(file for file in path.rglob("*") if _is_of_facts(file, path))
    if others := [file for file in files if not file.is_file()]:
        raise InputError(f"{others[0]}: expected a file, got a broken link, a pipe or a device. Remove it.")
    require_default_split(source, dataset_split)
    if not files:
        raise InputError(
            f"{source}: expected a folder written by `datasets.save_to_disk`, or one with files that end in "
            f"{listed(SUFFIXES)}, got one that holds neither."
        )
    return [_open_file(str(Path(source) / file.relative_to(path)), file, header_problem) for file in files]


def _is_of_facts(file: Path, folder: Path) -> bool:
    """Whether its name says that it holds facts; what editors and notebooks keep beside it begins with a full stop."""
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.name.endswith(SUFFIXES) and not is_hidden and not file.is_dir()


def short_name(source: str) -> str:
    """Name of the file without its suffix, of the folder, or of the Hub set without its owner."""
    name = Path(source).name
    return next((name.removesuffix(suffix) for suffix in _longest_first(SUFFIXES) if name.endswith(suffix)), name)


def _longest_first(suffixes: Iterable[str]) -> list[str]:
    return sorted(suffixes, key=len, reverse=True)


def _missing(source: str, path: Path) -> str:
    if source in BUILTIN:
        return f"`facts`: the built-in set {source!r} is read alone. Write it into a file by `convert {source} OUT`."
    if "://" in source:
        return f"`facts`: expected a file or a name of the Hub, got the address {source!r}. Download it first."
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


def _open_file(file: str, path: Path, header_problem: HeaderCheck) -> Table:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet") and path.suffix != ".gz":
        return Table(file, partial(parquet_rows, file=file, path=path))
    if name.endswith(".jsonl"):
        return Table(file, partial(jsonl_rows, file=file, path=path))
    if name.endswith(".json"):
        return Table(file, partial(json_rows, file=file, path=path))
    if name.endswith((".csv", ".tsv")):
        delimiter = "," if name.endswith(".csv") else "\t"
        rows = partial(_delimited_rows, file=file, path=path, delimiter=delimiter, header_problem=header_problem)
        return Table(file, rows)
    raise InputError(f"{file}: expected a file that ends in {listed(SUFFIXES)}, got {path.name!r}.")


# --- Text tables ----------------------------------------------------------------------------------------------------


def _delimited_rows(
    reading: Reading, file: str, path: Path, delimiter: str, header_problem: HeaderCheck
) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_LINE)  # a cell may hold a whole text
    header: list[str] = []
    next_number, num_empty = 1, 0
    with opened(file, path) as stream:
        table = csv.reader(_text_lines(reading, file, stream), delimiter=delimiter, strict=True)
        try:
            for cells in table:
                # A quoted cell may contain line breaks: a row is located by the line on which it starts.
                place, next_number = Place(file, next_number, "line"), table.line_num + 1
                num_empty = 0 if any(cell.strip() for cell in cells) else num_empty + 1
                if num_empty:
                    require_records(file, place.number, num_empty)
                    continue
                if not header:
                    header = [cell.strip() for cell in cells]
                    if other := _other_separator(header):
                        reading.note(place, f"cells separated by {_SEPARATORS[other]}, read as such")
                        yield from _delimited_rows(reading, file, path, other, header_problem)
                        return
                    problem = _repeated(header) or header_problem(header)
                    if problem:
                        reading.problem(place, problem, ends_reading=True)
                        return
                elif len(cells) != len(header):
                    reading.problem(place, f"expected {len(header)} cells as in the header, got {len(cells)}")
                else:
                    yield Row(place, dict(zip(header, cells, strict=True)), cells=True)
        except csv.Error as error:
            place = Place(file, next_number, "line")
            broken = f"expected cells separated by {_SEPARATORS[delimiter]}, got a row that cannot be parsed: {error}"
            reading.problem(place, broken, ends_reading=True)


def _text_lines(reading: Reading, file: str, stream: BufferedReader) -> Iterator[str]:
    """The lines of a text table, which may also end as on old Macs; they end where one is not UTF-8."""
    for number, line in enumerate(lines(file, stream), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            reading.problem(Place(file, number, "line"), not_utf8(line, error), ends_reading=True)
            return
        yield from re.split(r"(?<=\r)(?!\n)", text) if "\r" in text.rstrip("\r\n") else (text,)


def _other_separator(header: list[str]) -> str | None:
    """The separator of a table whose suffix promises another one: spreadsheets in half of Europe write semicolons."""
    return next((other for other in _SEPARATORS if len(header) == 1 and other in header[0]), None)


def _repeated(header: list[str]) -> str | None:
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    return f"expected a header that names each column once, got {listed(repeated)} more than once" if repeated else None
