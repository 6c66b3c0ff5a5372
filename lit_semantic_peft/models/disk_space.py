"""Room on disk for files that are written through memory mapping."""

import errno
import os
from pathlib import Path
from typing import IO

from lit_semantic_peft.errors import InputError

# What a file system answers that cannot reserve blocks.
_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class DiskSpaceError(InputError):
    """A file does not fit where it is to be written."""


def reserve(file: IO[bytes], size: int, remedy: str) -> None:
    """Makes a file so many bytes long, zeros where there was nothing, with every block on disk.

    Without its blocks a mapped file is a promise: the write that finds the disk full then ends the process by a signal
    (SIGBUS), which no `except` sees. Where the system cannot reserve blocks the file is all hole.

    Args:
        file: Open for writing, no longer than that.
        size: Bytes, ≥ 0.
        remedy: What needs the space and how to need less of it: sentences for the message.

    Raises:
        DiskSpaceError: Naming the folder, the size and the remedy, if there is no room.
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
