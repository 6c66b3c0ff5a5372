"""Reserves disk space for memory-mapped files."""

import errno
import os
from pathlib import Path
from typing import IO

from lit_semantic_peft.errors import InputError

# Errors of a file system that cannot reserve blocks.
_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class DiskSpaceError(InputError):
    """There is not enough disk space for a file."""


def reserve(file: IO[bytes], size: int, remedy: str) -> None:
    """Sets the size of a file and allocates every block on disk. New bytes are zero.

    If the disk is full when an unallocated block of a mapped file is written, a signal (SIGBUS) kills the process,
    which no `except` catches. On a file system that cannot reserve blocks the file stays sparse.

    Args:
        file: Open for writing, at most `size` bytes long.
        size: Bytes, ≥ 0.
        remedy: For the message: what needs the space, and how to need less.

    Raises:
        DiskSpaceError: If there is not enough space. The message has the folder, the size and the remedy.
    """
    try:
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in _NOT_OFFERED:
                    raise
        file.truncate(size)
    except OSError as error:
        folder, gigabytes = Path(file.name).resolve().parent, f"{size / 1e9:,.3g} GB"
        raise DiskSpaceError(f"{folder} has no room for a file of {gigabytes} ({error.strerror}). {remedy}") from error
