"""One owner of a folder among processes, by a lock that ends with its process."""

import errno
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

from lit_semantic_peft.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_OWNER = re.compile(rb"process \d+ on ")
_NOT_OFFERED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system without locks


class FolderLock:
    """A lock on a file that is made for it and removed afterwards.

    It is a POSIX record lock (`fcntl.lockf`), which belongs to one process: the kernel releases it when that process
    ends, however it ends, and a forked or spawned child does not have it. A `flock` would be shared with every forked
    worker, and so outlive its owner in an orphan. NFS passes it on to its server, so that it holds between machines
    where the server offers locks; where a file system offers none, the log says so and nothing is locked. Two owners
    within one process are not told apart.

    Args:
        path: The file. Its folder is made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            InputError: If another process holds it, whose number the message has, or the file is not of a lock.
            OSError: If the file cannot be made.
        """
        if fcntl is None:
            return
        while self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # its last owner has just removed the folder
                continue
            if not self._is_locked(handle):
                os.close(handle)
                self.path.unlink(missing_ok=True)
                return
            if not self._is_there(handle):  # its last owner has removed the file between our two calls
                os.close(handle)
                continue
            written = os.read(handle, 200)
            if written and not _OWNER.match(written):
                os.close(handle)
                raise InputError(
                    f"{self.path} exists, and lit-semantic-peft did not write it. Move it, or choose another folder by "
                    "`--trainer.default_root_dir runs/NAME`."
                )
            self._handle = handle
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError:  # a full disk
            self.release()
            raise

    def release(self, before: Callable[[], None] = lambda: None) -> None:
        """Gives the lock up and removes its file; nothing where it is not held.

        Args:
            before: What is still done under the lock.
        """
        if self._handle is None:
            return
        try:
            before()
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self._handle)
            self._handle = None

    def _is_locked(self, handle: int) -> bool:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NOT_OFFERED:
                logger.warning(
                    "%s is on a file system without locks: do not start a second run in it", self.path.parent
                )
                return False
            owner = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise InputError(
                f"{self.path.parent} is in use by {owner}. Wait until it has ended, or choose another folder by "
                "`--trainer.default_root_dir runs/NAME`."
            ) from error
        return True

    def _is_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False
