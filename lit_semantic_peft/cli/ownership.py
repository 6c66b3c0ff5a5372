"""A folder that one process writes into, left as it was where nothing comes of it."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import FULL, no_space, os_reason
from lit_semantic_peft.locks import FolderLock
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.reports.run_folder import ENTRIES


class OwnedFolder:
    """Holds the lock of a run folder inside a `with` block, which makes the folder where it is missing.

    Afterwards a folder that the block made and left empty is gone, its parents too.

    Args:
        folder: The folder.

    Raises:
        InputError: At the start of the block, if another process is its owner, or it cannot be made.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._lock = FolderLock(folder.paths.lock)
        self._made: list[Path] = []
        self._before: set[str] = set()

    def __enter__(self) -> "OwnedFolder":
        path = self.folder.path
        try:
            self._made = [one for one in (path, *path.parents) if not one.exists()]
            self._lock.acquire()
            self._before = {one.name for one in path.iterdir()}
        except OSError as error:
            self._remove_empty()
            reason = f"{os_reason(error)}. Choose another by `--trainer.default_root_dir runs/NAME`."
            raise InputError(
                f"The folder {path} cannot be written: {no_space(path) if error.errno in FULL else reason}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
        self._remove_empty()

    @property
    def is_made(self) -> bool:
        """Whether there was no folder before."""
        return bool(self._made)

    def remove_what_is_new(self, others: Iterable[Path] = ()) -> None:
        """Removes the files and folders of a run that were not there at the start.

        Args:
            others: What else this process made, as paths; what is not in the folder is let alone.
        """
        root = self.folder.path.absolute()
        inside = (path.absolute().relative_to(root).parts for path in others if path.absolute().is_relative_to(root))
        names = {entry.name for entry in ENTRIES} | {parts[0] for parts in inside if parts}
        for name in names - self._before - {self.folder.paths.lock.name}:
            path = root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _remove_empty(self) -> None:
        for path in self._made:
            with suppress(OSError):  # it is not empty, or was never made
                path.rmdir()
