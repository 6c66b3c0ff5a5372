"""Reads rows from JSON lines and from JSON arrays, in memory that does not grow with the file."""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.opened import LARGEST_LINE, lines, not_utf8, opened, require_size
from lit_semantic_peft.facts.reading import Place, Reading, Row, shown

_ONE_A_LINE = "Write one record a line, or an array of all records into a file that ends in `.json`."
_WHITE = re.compile(r"\s*")
_WINDOW = 2**20  # bytes read at once
_LONGEST_LITERAL = 16  # characters; `-Infinity` is cut short by the end of a window, as is `\uD83D\uDE00`


def jsonl_rows(reading: Reading, file: str, path: Path) -> Iterator[Row]:
    """The records of a file with one on each line. A line that cannot be parsed is recorded as a problem.

    Raises:
        InputError: If the file cannot be read, or it or a line is too long.
    """
    with opened(file, path) as stream:
        is_first = True
        for number, line in enumerate(lines(file, stream), start=1):
            if not line.strip():
                continue
            place = Place(file, number, "line")
            is_one_value, is_first = is_first and line.strip() in (b"{", b"["), False
            if is_one_value:
                sentence = f"expected a JSON object, got {line.decode().strip()!r}, which goes on in the next line"
                reading.problem(place, f"{sentence}. {_ONE_A_LINE}", ends_reading=True)
                return
            try:
                row = json.loads(line.rstrip(b"\n").decode("utf-8"), object_pairs_hook=_unrepeated)
            except UnicodeDecodeError as error:
                reading.problem(place, not_utf8(line, error))
            except (ValueError, RecursionError) as error:
                reading.problem(place, f"expected a JSON object, got {_broken_json(error)}")
            else:
                yield from _object_row(reading, place, row)


def json_rows(reading: Reading, file: str, path: Path) -> Iterator[Row]:
    """Records of a JSON array, parsed one at a time. Some publishers write JSON lines under this suffix too.

    Raises:
        InputError: If the file cannot be read, it or a record is too long, or it is one object.
    """
    with opened(file, path) as stream:
        window = _Window(file, stream)
        try:
            if window.takes("["):
                yield from _array_rows(reading, file, window)
                return
            is_one_object = window.is_one_object()
        except UnicodeDecodeError as error:
            number, position = window.place_of(error)
            byte = error.object[error.start]
            sentence = f"expected UTF-8, got the byte 0x{byte:02x} at position {position}. Save the file as UTF-8."
            reading.problem(Place(file, number, "line"), sentence, ends_reading=True)
            return
    if is_one_object:
        raise InputError(
            f"{file}: expected an array of records, or one record a line, got one object over the whole file. "
            "Write the array of its records alone."
        )
    yield from jsonl_rows(reading, file, path)


def _array_rows(reading: Reading, file: str, window: "_Window") -> Iterator[Row]:
    number = 0
    while not window.takes("]"):
        number += 1
        place = Place(file, number, "record")
        try:
            row = window.record(place)
        except (InputError, UnicodeDecodeError):
            raise
        except (ValueError, RecursionError) as error:
            # After a broken record the start of the next one is unknown: reading stops here.
            where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            broken = f"expected a JSON object, got {_broken_json(error)}{where}"
            reading.problem(place, broken, ends_reading=True)
            return
        yield from _object_row(reading, place, row)
        window.takes(",")
    rest = window.rest()
    if rest:
        place = Place(file, number, "record")
        reading.problem(place, f"expected the end of the file after the array, got {shown(rest)}")


class _Window:
    """A part of a file's text, from the record that is being read on."""

    def __init__(self, file: str, stream: BufferedReader) -> None:
        self._file, self._stream = file, stream
        self._bytes = getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder(object_pairs_hook=_unrepeated)
        self._size = 0  # bytes read
        self._line, self._column = 1, 0  # where the text begins
        self._text, self._position = "", 0

    def takes(self, sign: str) -> bool:
        """Goes on behind a sign if it comes next; white space before it is skipped in any case."""
        self._skip_white()
        is_next = self._text.startswith(sign, self._position)
        self._position += len(sign) if is_next else 0
        return is_next

    def record(self, place: Place) -> Any:
        """The value that comes next, behind which there is a comma or the end of the array.

        Raises:
            InputError: If it is longer than `LARGEST_LINE`.
            ValueError: If it cannot be parsed; a `JSONDecodeError` names line and column of the file.
            RecursionError: If it is nested too deeply.
        """
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._position)
                end = _after_white(self._text, end)
                if not self._text.startswith((",", "]"), end):
                    raise json.JSONDecodeError("Expecting ',' or ']'", self._text, end)
            except json.JSONDecodeError as error:
                error.colno += self._column if error.lineno == 1 else 0
                error.lineno += self._line - 1
                is_cut = error.pos >= len(self._text) - _LONGEST_LITERAL or error.msg.startswith("Unterminated string")
                if is_cut and self._extend():
                    if len(self._text) > LARGEST_LINE + _WINDOW:
                        raise InputError(
                            f"{place}: expected a record of at most {LARGEST_LINE:,} characters, got a longer one, or "
                            "one whose end is missing."
                        ) from error
                    continue
                raise
            self._position = end
            return value

    def rest(self) -> str:
        """The start of what comes next, empty at the end of the file."""
        self._skip_white()
        return self._text[self._position : self._position + 80]

    def is_one_object(self) -> bool:
        """Whether a single JSON object comes next that is spread over several lines."""
        while len(self._text) < LARGEST_LINE and self._extend():
            pass
        text = self._text[self._position :]
        try:
            json.loads(text.partition("\n")[0])
        except (ValueError, RecursionError):
            try:
                return isinstance(json.loads(text), dict)
            except json.JSONDecodeError as error:
                # Of JSON lines the second would be wrong behind a first that is cut short.
                return len(text) >= LARGEST_LINE and error.lineno > 2
            except (ValueError, RecursionError):
                return False
        return False

    def place_of(self, error: UnicodeDecodeError) -> tuple[int, int]:
        """Line and position in it, in characters, of bytes that are not UTF-8."""
        before = self._text + error.object[: error.start].decode("utf-8")
        newlines = before.count("\n")
        in_line = len(before) - before.rfind("\n") if newlines else self._column + len(before) + 1
        return self._line + newlines, in_line

    def _skip_white(self) -> None:
        self._position = _after_white(self._text, self._position)
        while self._position == len(self._text) and self._extend():
            self._position = _after_white(self._text, self._position)

    def _extend(self) -> bool:
        """Forgets what was read and adds more, at least as much as is left; whether there was any."""
        read, self._text = self._text[: self._position], self._text[self._position :]
        newlines = read.count("\n")
        self._column = len(read) - read.rfind("\n") - 1 if newlines else self._column + len(read)
        self._line += newlines
        self._position = 0
        data = self._stream.read(max(_WINDOW, len(self._text)))
        self._size += len(data)
        require_size(self._file, self._size)
        self._text += self._bytes.decode(data, final=not data)
        return bool(data)


def _after_white(text: str, position: int) -> int:
    found = _WHITE.match(text, position)
    return found.end() if found else position


def _object_row(reading: Reading, place: Place, row: Any) -> Iterator[Row]:
    if isinstance(row, dict):
        yield Row(place, row)
    else:
        remedy = f". {_ONE_A_LINE}" if isinstance(row, list) and place.unit == "line" else ""
        expected = 'expected a JSON object such as {"prompt": ..., "target": ...}'
        reading.problem(place, f"{expected}, got {shown(row)}{remedy}")


class _RepeatedNameError(ValueError):
    """An object has a name twice; Python would take the value of the last."""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedNameError(shown(next(name for name in names if names.count(name) > 1)))
    return found


def _broken_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, _RepeatedNameError):
        return f"one that names {error} more than once"
    if isinstance(error, RecursionError):
        return "JSON that is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at character {error.colno}"
    return "a number with more digits than can be read"
