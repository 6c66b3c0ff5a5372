"""Atomic writes of files and folders that replace nothing but what this package wrote, and content hashes."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from lit_semantic_peft.errors import InputError

LEFTOVER = ".writing-"
"""Prefix of the name of a file or folder that is not complete yet, or that a killed process left behind."""

WRITTEN_BY = "written_by"
"""Name of the entry that holds the mark of a file's kind, in formats that have named entries."""

_MARK_WITHIN = 65_536  # bytes from either end of a file: formats keep their metadata there
FULL = (errno.ENOSPC, errno.EDQUOT)
"""The operating system's numbers for a disk without room for bytes or files."""

_OF_THE_PATH = {
    *FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
}


class UnwritableError(InputError):
    """A file or folder cannot be written: no space, no permission, or a name that the file system refuses."""


def mark(kind: str) -> str:
    """The text by which a file of a kind is recognised, in its first or last 64 KiB.

    Args:
        kind: What the file is, such as `report.html`.
    """
    return f"lit-semantic-peft:{kind}"


def refuse_foreign(
    path: str | os.PathLike[str],
    kind: str,
    sign: str | None = None,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuses to replace a file that this package did not write as this kind of output, or that is read.

    An empty file may be replaced.

    Args:
        path: The file to write.
        kind: As in `mark`.
        sign: Text by which it is recognised; `mark(kind)` where None.
        inputs: Files that are read, and folders whose files are.

    Raises:
        InputError: If there is such a file.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    whole = path.resolve()
    for one in map(Path, inputs):
        if one.exists() and whole.is_relative_to(one.resolve()):
            raise InputError(f"{path} would be replaced, but {one} is read. Choose another folder for the output.")
    if not _holds(path, mark(kind) if sign is None else sign):
        raise InputError(
            f"{path} exists, and lit-semantic-peft did not write it as {kind}, so it is not replaced. Move it, or "
            "choose another folder for the output."
        )


def _holds(path: Path, sign: str) -> bool:
    """Whether a text is near one of a file's ends, or the file is empty."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        found = file.read(_MARK_WITHIN)
        file.seek(max(file.tell(), path.stat().st_size - _MARK_WITHIN))
        found += file.read()
    return not found or sign.encode() in found


@contextmanager
def atomic_path(path: str | os.PathLike[str], kind: str | None = None, sign: str | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`. When the block ends without an exception, that file replaces `path`.

    A killed process leaves at most a file whose name starts with `.writing-`; readers never see half a file. A
    missing parent folder is created.

    Args:
        path: The file to write.
        kind: What it is; None where the folder is this package's own, such as the cache.
        sign: Text near one of its ends by which it is recognised later, which the block writes; `mark(kind)` where
            None.

    Yields:
        The path to write to, in the same folder and with the same suffixes as `path`.

    Raises:
        InputError: If there is a file that `refuse_foreign` refuses.
        UnwritableError: If the file cannot be written.
    """
    path = Path(path)
    if kind is not None:
        refuse_foreign(path, kind, sign)
    with _parents_of(path), _writing(path):
        handle, name = tempfile.mkstemp(prefix=LEFTOVER, suffix="".join(path.suffixes), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            with _writing(path):
                yield temporary
                share(temporary)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str], sign: str | None = None) -> Iterator[Path]:
    """As `atomic_path`, for a folder. An existing folder is replaced as a whole.

    Args:
        folder: The folder to write.
        sign: Name of the file by which a folder is known as one that this package wrote as this kind of output; None
            where nothing but an empty folder may be replaced.

    Yields:
        An empty folder beside it.

    Raises:
        InputError: If there is a file, or another folder that is not empty.
        UnwritableError: If the folder cannot be written.
    """
    folder = Path(folder)
    is_own = sign is not None and (folder / sign).is_file()
    if os.path.lexists(folder) and not is_own and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already; name another folder or delete it.")
    beside = partial(tempfile.TemporaryDirectory, prefix=LEFTOVER, dir=folder.parent)
    with _parents_of(folder), _writing(folder), beside() as name, _writing(folder):
        temporary, previous = Path(name, "new"), Path(name, "old")
        temporary.mkdir()
        yield temporary
        share(temporary)
        if folder.exists():
            folder.replace(previous)  # a kill can only come between the two renames
        temporary.replace(folder)


@contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """Makes the folders above a path; after an exception those that it made and that are empty are gone."""
    missing: list[Path] = []
    try:
        with _writing(path):
            missing = [one for one in path.parents if not one.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in missing:
            with suppress(OSError, ValueError):
                one.rmdir()
        raise


def share(path: Path) -> None:
    """Gives a file, or a folder and all that is in it, the permissions of what the user makes: those of the umask.

    Args:
        path: The file or folder; libraries make theirs for the owner alone.
    """
    umask = os.umask(0)
    os.umask(umask)
    for one in (path, *path.rglob("*")):
        if not one.is_symlink():
            one.chmod((0o777 if one.is_dir() else 0o666) & ~umask)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into an error that names it. Libraries have types of their own for that."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        usage = disk_space(path.parent)
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or "No space left" in str(error) or "quota exceeded" in str(error) or usage[0] == 0:
            raise UnwritableError(f"{path} cannot be written: {no_space(path.parent)}") from error
        if not isinstance(error, OSError) or number is None:
            raise
        raise UnwritableError(f"{path} cannot be written: {os_reason(error)}. Choose another folder.") from error


def unusable_path(error: OSError) -> str | None:
    """What to say of a failed call that names a path, where the path or its disk is at fault and no program.

    Args:
        error: Of the operating system.
    """
    if error.filename is None:
        return f"What is printed cannot be written: {os_reason(error)}" if error.errno in FULL else None
    if error.errno not in _OF_THE_PATH:
        return None
    path = Path(os.fsdecode(error.filename))
    return f"{path}: {no_space(path.parent) if error.errno in FULL else os_reason(error)}"


def no_space(folder: Path) -> str:
    """What to say of a full disk.

    Args:
        folder: A folder on it, which need not exist yet.
    """
    free, free_files = disk_space(folder)
    return (
        f"no space left in {folder.absolute()} ({free:,} bytes and {free_files:,} files are free). Make room there, or "
        "choose another folder."
    )


def os_reason(error: OSError) -> str:
    """What the operating system says of a failed call, without path and number."""
    return error.strerror or str(error) or type(error).__name__


def disk_space(folder: Path) -> tuple[int, int]:
    """Bytes and files for which a user's disk has room.

    Args:
        folder: A folder on it, which need not exist yet.
    """
    there = next((one for one in (folder.absolute(), *folder.absolute().parents) if _is_folder(one)), Path.cwd())
    if not hasattr(os, "statvfs"):
        return shutil.disk_usage(there).free, 0
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize, found.f_favail


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder; one whose name no file system takes is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes incomplete files of killed processes anywhere below a folder that no process is writing to."""
    for path in sorted(Path(folder).rglob(f"{LEFTOVER}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/")
"""Where a shell names what it reads from another command, as in `<(command)`."""

_of_pipes: dict[int, str] = {}
"""What pipes held that this process has read, by the number of the pipe, which gives its text once."""


def read_text(path: str | os.PathLike[str], setting: str) -> str:
    """The text of a file that a user named, behind a byte order mark.

    Args:
        path: The file.
        setting: Where it was named, such as `` `watch` ``.

    Raises:
        InputError: If it is no file, cannot be read or is not UTF-8. A pipe is not waited for, except that of a shell,
            whose text is kept to be read again.
    """
    path = Path(path).expanduser()
    try:
        is_open = str(path).startswith(_DESCRIPTORS)
        if path.exists() and not path.is_file() and not path.is_dir() and not is_open:
            raise InputError(f"{setting}: {path} is a pipe or a device. Expected a file.")
        text = path.read_text(encoding="utf-8-sig")
        if not is_open or path.is_file():
            return text
        pipe = path.stat().st_ino
        _of_pipes[pipe] = text = text or _of_pipes.get(pipe, "")
        if not text:
            raise InputError(f"{setting}: {path} holds nothing. Write its text into a file.")
        return text
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{setting}: {path}: line {line}: expected UTF-8. Save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{setting}: {path} cannot be read: {os_reason(error)}. Expected a file.") from error


def write_text(path: str | os.PathLike[str], text: str, kind: str | None = None) -> None:
    """Writes `text` as UTF-8 to `path`, as `atomic_path` does."""
    with atomic_path(path, kind) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any, kind: str | None = None) -> None:
    """Writes `value` as readable JSON to `path`, as `atomic_path` does. NaN is refused: write None for "not measured".

    With a kind the value is a mapping, and its mark is written as first entry.
    """
    if kind is not None:
        value = {WRITTEN_BY: mark(kind), **value}
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", kind)


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
