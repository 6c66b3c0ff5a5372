"""Reads rows from folders written by `datasets.save_to_disk`, whose bytes Arrow takes as they are."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.libraries import dataset_rows, require_default_split, split_of
from lit_semantic_peft.facts.opened import opened
from lit_semantic_peft.facts.reading import Reading, Row, cut

_HEADER, _DATA, _COMPRESSION = 2, 1, 3
"""Places of fields in Arrow's `Message.fbs`: a message's header, a dictionary batch's rows, and how rows are packed."""

_ANEW = "Save it anew by `save_to_disk`."


def saved_dataset_rows(source: str, path: Path, dataset_split: str) -> Callable[[Reading], Iterator[Row]]:
    """Loads a folder written by `datasets.save_to_disk`; what is returned gives its rows.

    Raises:
        InputError: If the folder cannot be loaded, has no such split or none at all, or one of its files is damaged, or
            is compressed and so might unpack to any size.
    """
    import datasets

    try:
        for file in _files(path):
            _require_plain(file)
        loaded = datasets.load_from_disk(str(path))
    except InputError:
        raise
    except Exception as error:  # a damaged folder can make `datasets` raise anything
        raise InputError(f"{source}: `datasets` cannot load this folder: {cut(str(error), 500)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = split_of(source, loaded, dataset_split)
    else:
        require_default_split(source, dataset_split)
    return lambda reading: dataset_rows(source, loaded)


def _files(path: Path) -> Iterator[Path]:
    """The files that `datasets` takes into memory, in all splits; none where it will miss something."""
    splits = path / "dataset_dict.json"
    for folder in [path / name for name in _json(splits)["splits"]] if splits.is_file() else [path]:
        state = folder / "state.json"
        if state.is_file():
            yield from (folder / one["filename"] for one in _json(state)["_data_files"])


def _json(file: Path) -> Any:
    with opened(str(file), file) as stream:
        return json.load(stream)


def _require_plain(path: Path) -> None:
    """Refuses a file of which Arrow would follow a wrong offset, or unpack what is compressed.

    Raises:
        InputError: If it does either, or cannot be opened.
    """
    import pyarrow as pa

    file = str(path)
    with opened(file, path):  # names a Git LFS pointer, and a file that cannot be opened
        pass
    try:
        with pa.memory_map(file) as mapped:
            if any(_is_compressed(message) for message in pa.ipc.MessageReader.open_stream(mapped)):
                raise InputError(f"{file}: expected plain Arrow data, got compressed. {_ANEW}")
            mapped.seek(0)
            for batch in pa.ipc.open_stream(mapped):
                batch.validate(full=True)
    except (pa.ArrowException, struct.error, OSError) as error:
        damage = cut(str(error), 300)
        raise InputError(f"{file}: expected Arrow data, got a file that is damaged: {damage}. {_ANEW}") from error


def _is_compressed(message: Any) -> bool:
    """Whether a message of an Arrow stream holds rows that are packed."""
    data = message.metadata.to_pybytes()
    place = _followed(data, 0)
    header = _field(data, place, _HEADER)
    if message.type == "dictionary" and header is not None:
        header = _field(data, _followed(data, header), _DATA)
    if message.type not in ("dictionary", "record batch") or header is None:
        return False
    return _field(data, _followed(data, header), _COMPRESSION) is not None


def _followed(data: bytes, place: int) -> int:
    """Where a FlatBuffers offset leads to."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """The place of a field of a FlatBuffers table; None where it is left out."""
    of_places = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, of_places)[0]:
        return None
    offset = struct.unpack_from("<H", data, of_places + 4 + 2 * number)[0]
    return table + offset if offset else None
