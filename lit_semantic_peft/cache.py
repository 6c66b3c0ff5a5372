"""Numbers that are expensive to compute, stored under a key of everything that they depend on."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lit_semantic_peft.files import UnwritableError, atomic_path, content_key, write_json

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

T = TypeVar("T")


def cache_folder() -> Path:
    """The user's cache: `$LIT_SEMANTIC_PEFT_CACHE`, else `lit-semantic-peft` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("LIT_SEMANTIC_PEFT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-semantic-peft"


class ContentCache:
    """A folder of tables and arrays, each beside a readable manifest of what it was computed from.

    An entry is named by the content key of its manifest, so that it is found exactly if everything is equal. The
    manifest is written first, and every file appears whole: an entry is never seen without a manifest or incomplete.
    A damaged entry counts as absent and is named in the log.

    Args:
        folder: Where the entries are; made when missing.

    Example:
        >>> from tempfile import mkdtemp
        >>> cache = ContentCache(mkdtemp())
        >>> cache.store_array({"facts": 2}, np.array([0.5, 1.5]))
        >>> cache.load_array({"facts": 2}).tolist(), cache.load_array({"facts": 3})
        ([0.5, 1.5], None)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._is_unwritable = False

    def load_table(self, manifest: Mapping[str, Any], decode: "Callable[[pa.Table], T]") -> T | None:
        """What the table computed from exactly this holds, or None.

        Args:
            manifest: Everything that the table depends on, as plain data.
            decode: Takes the values out of the table. A table that it cannot take is a damaged entry.
        """
        return _read(self._path(manifest, ".parquet"), lambda path: decode(_table(path)))

    def store_table(self, manifest: Mapping[str, Any], table: "pa.Table") -> None:
        """Stores a table and deletes its parts.

        Args:
            manifest: As for `load_table`.
            table: The table.
        """
        with self._storing():
            self._describe(manifest)
            _write_table(self._path(manifest, ".parquet"), table)
        shutil.rmtree(self._path(manifest, ".parts"), ignore_errors=True)

    def load_part(self, manifest: Mapping[str, Any], number: int, decode: "Callable[[pa.Table], T]") -> T | None:
        """A part of a table that an earlier job computed before it ended, or None.

        Args:
            manifest: Of the whole table.
            number: Number of the part.
            decode: As for `load_table`.
        """
        return _read(self._part(manifest, number), lambda path: decode(_table(path)))

    def store_part(self, manifest: Mapping[str, Any], number: int, table: "pa.Table") -> None:
        """Stores a part of a table until the table is complete.

        Args:
            manifest: Of the whole table.
            number: Number of the part.
            table: The part.
        """
        with self._storing():
            _write_table(self._part(manifest, number), table)

    def load_array(self, manifest: Mapping[str, Any]) -> "NDArray[np.float64] | None":
        """The array computed from exactly this, or None.

        Args:
            manifest: Everything that the array depends on, as plain data.
        """
        return _read(self._path(manifest, ".npy"), _array)

    def store_array(self, manifest: Mapping[str, Any], array: "NDArray[np.float64]") -> None:
        """Stores an array.

        Args:
            manifest: As for `load_array`.
            array: float64.
        """
        with self._storing():
            self._describe(manifest)
            with atomic_path(self._path(manifest, ".npy")) as temporary, open(temporary, "wb") as file:
                np.save(file, array)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Goes on without an entry that cannot be written: it is computed again the next time. Said once."""
        try:
            yield
        except UnwritableError as error:
            if not self._is_unwritable:
                logger.warning("Nothing is kept for later: %s", error)
            self._is_unwritable = True

    def _describe(self, manifest: Mapping[str, Any]) -> None:
        write_json(self._path(manifest, ".json"), manifest)

    def _path(self, manifest: Mapping[str, Any], suffix: str) -> Path:
        return self.folder / f"{content_key(manifest)}{suffix}"

    def _part(self, manifest: Mapping[str, Any], number: int) -> Path:
        return self._path(manifest, ".parts") / f"{number}.parquet"


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    try:
        return read(path) if path.is_file() else None
    except Exception as error:  # a damaged file or table raises a dozen unrelated types
        logger.warning("The cached entry %s cannot be read (%s); it is made anew.", path, error)
        return None


def _table(path: Path) -> "pa.Table":
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _array(path: Path) -> "NDArray[np.float64]":
    array: NDArray[np.float64] = np.load(path)
    return array


def _write_table(path: Path, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
