"""Opens files of facts: unpacked, in bounded memory, with an input error for whatever is wrong with them."""

import gzip
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import count
from pathlib import Path

from lit_semantic_peft.errors import InputError

LARGEST_FILE = 2**30
"""Bytes of records in one file, unpacked."""

LARGEST_LINE = 2**24
"""Bytes of one line."""

MOST_RECORDS = 2 * 10**6
"""Records of one source: a fact takes about a kilobyte in memory, however short its line."""

MOST_EMPTY_LINES = 10**6
"""Lines without a record, one after the other: a few kilobytes unpack to hours of them."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small file begins that Git LFS leaves in place of one that it has not downloaded."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextmanager
def opened(file: str, path: Path) -> Iterator[BufferedReader]:
    """The file's bytes, unpacked, behind a byte order mark; what goes wrong while they are read is an input error."""
    try:
        with path.open("rb") as packed:
            if packed.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
                raise InputError(
                    f"{file}: expected facts, got a Git LFS pointer: the file itself was not downloaded. "
                    "Run `git lfs pull` in its repository."
                )
            with gzip.open(packed) if path.suffix == ".gz" else packed as plain:
                # A `GzipFile` reads each line in Python; a buffer around it does not.
                stream: BufferedReader = BufferedReader(plain)
                if stream.peek(len(_BYTE_ORDER_MARK)).startswith(_BYTE_ORDER_MARK):
                    stream.read(len(_BYTE_ORDER_MARK))
                yield stream
    except EOFError as error:
        raise InputError(
            f"{file}: expected a whole gzip file, got one that is cut short. Copy or download it again."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{file}: expected a gzip file, got something else or a broken one ({error}). "
            "Compress it again, or drop `.gz` from its name if it is plain text."
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def lines(file: str, stream: BufferedReader) -> Iterator[bytes]:
    """The lines one by one, ended by line feeds alone: JSON text may contain other characters that Python splits at.

    Raises:
        InputError: If a line is longer than `LARGEST_LINE`, all of them are longer than `LARGEST_FILE`, or too many of
            them are empty.
    """
    size, num_empty = 0, 0
    for number in count(1):
        line = stream.readline(LARGEST_LINE + 1)
        size += len(line)
        if len(line) > LARGEST_LINE:
            raise InputError(
                f"{file}, line {number}: expected a record of at most {LARGEST_LINE:,} bytes, got a longer one. "
                "Write one record a line."
            )
        require_size(file, size)
        num_empty = 0 if line.strip() else num_empty + 1
        require_records(file, number, num_empty)
        if not line:
            return
        yield line


def require_size(file: str, size: int) -> None:
    """Refuses a file that unpacks to more than `LARGEST_FILE` bytes."""
    if size > LARGEST_FILE:
        raise InputError(
            f"{file}: expected at most {LARGEST_FILE:,} bytes of records, unpacked, got more. Split the file."
        )


def require_records(file: str, number: int, num_empty: int) -> None:
    """Refuses a file with more than `MOST_EMPTY_LINES` empty lines, one after the other, up to line `number`."""
    if num_empty > MOST_EMPTY_LINES:
        raise InputError(
            f"{file}, line {number}: expected a record, got more than {MOST_EMPTY_LINES:,} empty lines. Remove them."
        )


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """What to say of a line that is not UTF-8."""
    position = error.start
    byte = f"the byte 0x{line[position]:02x} at position {position + 1}"
    if line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        byte += ", as UTF-16 begins"
    return f"expected UTF-8, got {byte}. Save the file as UTF-8."
