"""Atomic writes of files and folders, and content hashes."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEFTOVER = ".writing-"
"""Prefix of the name of a file or folder that is not complete yet, or that a killed process left behind."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`. When the block ends without an exception, that file replaces `path`.

    A killed process leaves at most a file whose name starts with `.writing-`; readers never see half a file. A
    missing parent folder is created.

    Args:
        path: The file to write.

    Yields:
        The path to write to, in the same folder and with the same suffixes as `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=LEFTOVER, suffix="".join(path.suffixes), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600; a shared run folder is read by others
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """As `atomic_path`, for a folder. An existing folder is replaced as a whole.

    Args:
        folder: The folder to write.

    Yields:
        An empty folder beside it.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=LEFTOVER, dir=folder.parent))
    previous = Path(tempfile.mkdtemp(prefix=LEFTOVER, dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.replace(previous)  # replaces an empty folder; a kill can only come between the two renames
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes incomplete files of killed processes anywhere below a folder that no process is writing to."""
    for path in sorted(Path(folder).rglob(f"{LEFTOVER}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as readable JSON to `path`, atomically. NaN is refused: write None for "not measured"."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def content_key(*parts: Any) -> str:
    """Hash of content: equal parts give the same key on every machine, different parts different keys.

    Args:
        parts: Anything that JSON can hold (mappings are sorted).

    Returns:
        32 hexadecimal digits (the first half of a SHA-256).

    Example:
        >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
        True
        >>> content_key("a") == content_key("b")
        False
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
