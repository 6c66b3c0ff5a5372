"""Folders of `datasets` whose files are damaged, compressed or not there, and rows that its decoders refuse."""

from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import read_facts

FILE = "data-00000-of-00001.arrow"
COLUMNS = {"prompt": ["It is", "It was"], "target": ["one", "two"], "aliases": [["1"], []]}


@pytest.fixture
def folder(tmp_path):
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


def error(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(str(folder))
    return str(caught.value)


def write_arrow(folder: Path, table: pa.Table, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(folder / FILE), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as stream:
        stream.write_table(table)


@pytest.mark.parametrize("columns", [COLUMNS, {**COLUMNS, "target": pa.array(["one", "two"]).dictionary_encode()}])
def test_a_file_that_is_rewritten_as_it_was_is_read(columns, folder):
    write_arrow(folder, pa.table(columns))
    assert [(one.prompt, one.target) for one in read_facts(str(folder)).facts] == [("It is", "one"), ("It was", "two")]


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_file_is_refused_before_it_is_unpacked(codec, folder, monkeypatch):
    write_arrow(folder, pa.table({"prompt": ["It is"], "target": ["one" * 1000]}), codec)
    monkeypatch.setattr(pa.ipc, "open_stream", lambda _: pytest.fail("it is unpacked"))
    assert error(folder).startswith(f"{folder / FILE}: expected plain Arrow data, got compressed. Save it anew")


def test_compressed_texts_that_are_held_once_are_refused(folder):
    write_arrow(folder, pa.table({**COLUMNS, "target": pa.array(["one", "two" * 1000]).dictionary_encode()}), "zstd")
    assert "expected plain Arrow data, got compressed" in error(folder)


def replaced(old: bytes, new: bytes):
    def change(file: Path) -> None:
        data = file.read_bytes()
        assert data.count(old) == 1
        file.write_bytes(data.replace(old, new))

    return change


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


DAMAGE = {
    "text that is not UTF-8": (replaced(b"It isIt was", b"\xfft isIt was"), "Invalid UTF8 sequence"),
    # Arrow would follow it out of the file, which ends the process.
    "an offset that leads out of the file": (
        replaced(numbers(0, 5, 11), numbers(0, 2**31 - 9, 11)),
        "Offset invariant",
    ),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-600]), "Expected to read"),
    "empty": (lambda file: file.write_bytes(b""), "null or length 0"),
    "text": (lambda file: file.write_text("no Arrow data at all"), "Expected to read"),
    "of Git LFS": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "not there": (lambda file: file.unlink(), "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage, folder):
    change, said = DAMAGE[damage]
    change(folder / FILE)
    message = error(folder)
    assert message.startswith(f"{folder / FILE}: ")
    assert said in message


@pytest.mark.parametrize("state", ["{", "[]", '{"_data_files": [1]}', "[" * 100_000])
def test_a_damaged_list_of_files_is_refused(state, folder):
    (folder / "state.json").write_text(state)
    assert error(folder).startswith(f"{folder}: `datasets` cannot load this folder: ")


def test_the_files_of_every_split_are_looked_at(tmp_path):
    rows = datasets.Dataset.from_dict(COLUMNS)
    datasets.DatasetDict({"train": rows, "other": rows}).save_to_disk(str(tmp_path / "set"))
    assert len(read_facts(str(tmp_path / "set"))) == 2
    write_arrow(tmp_path / "set" / "other", pa.table(COLUMNS), "zstd")
    assert error(tmp_path / "set").startswith(f"{tmp_path / 'set' / 'other' / FILE}: expected plain Arrow data")


def test_a_row_that_cannot_be_decoded_is_named(folder):
    features = datasets.Features(
        {**dict.fromkeys(("prompt", "target"), datasets.Value("string")), "image": datasets.Image()}
    )
    picture = {"bytes": b"no picture", "path": None}
    rows = {"prompt": ["It is", "It was"], "target": ["one", "two"], "image": [None, picture]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder.parent / "pictures"))
    assert error(folder.parent / "pictures").startswith(
        f"{folder.parent / 'pictures'}, row 2: expected values that can"
    )
