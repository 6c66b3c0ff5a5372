import json
import os
import stat

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import (
    atomic_folder,
    atomic_path,
    content_key,
    file_sha256,
    read_text,
    refuse_foreign,
    write_json,
    write_text,
)


def test_a_file_appears_whole_in_a_folder_that_did_not_exist(tmp_path):
    path = tmp_path / "a" / "b" / "table.parquet.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
        assert temporary.suffixes == path.suffixes
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_shell_hands_on_is_read_and_a_named_pipe_is_not_waited_for(tmp_path):
    readable, writable = os.pipe()
    os.write(writable, "\ufeffgrün".encode())
    os.close(writable)
    for _ in range(2):  # a recipe, the training and the report after it may each ask for a file
        assert read_text(f"/dev/fd/{readable}", "`watch`") == "grün"
    os.close(readable)
    readable, writable = os.pipe()  # often under the number of the one before
    os.close(writable)
    with pytest.raises(InputError, match=r"holds nothing. Write its text into a file"):
        read_text(f"/dev/fd/{readable}", "`watch`")
    os.close(readable)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            read_text(path, "`watch`")


def test_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "table.txt", "x")
        assert os.umask(0o027) == 0o027, "umask changed"
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "table.txt").stat().st_mode) == 0o640


def test_a_folder_and_what_is_in_it_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "adapter") as temporary:
            (temporary / "deep").mkdir(mode=0o700)
            for path in (temporary / "weights", temporary / "deep" / "more"):
                path.touch()
                path.chmod(0o600)  # as safetensors does
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"adapter": 0o750, "deep": 0o750, "weights": 0o640, "more": 0o640}


def test_only_a_file_of_the_same_kind_is_replaced(tmp_path):
    path = tmp_path / "found.json"
    write_json(path, {"a": 1}, "one kind")
    write_json(path, {"a": 2}, "one kind")
    assert json.loads(path.read_text())["a"] == 2
    with pytest.raises(InputError, match="did not write it as another kind"):
        write_json(path, {"a": 3}, "another kind")
    with pytest.raises(InputError, match=r"would be replaced, but .* is read"):
        refuse_foreign(path, "one kind", inputs=[tmp_path])
    path.write_text('{"a": 4}')
    with pytest.raises(InputError, match="did not write it"):
        write_json(path, {"a": 5}, "one kind")
    assert path.read_text() == '{"a": 4}'
    path.write_text("")  # nobody's
    write_json(path, {"a": 6}, "one kind")


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path):
    folder = tmp_path / "adapter"
    for text in ("first", "second"):
        with atomic_folder(folder, "sign.json") as temporary:
            (temporary / "sign.json").write_text(text)
    assert (folder / "sign.json").read_text() == "second"
    (folder / "sign.json").rename(folder / "mine.txt")

    def replace():
        with atomic_folder(folder, "sign.json"):
            pass

    with pytest.raises(InputError, match="exists already"):
        replace()
    assert (folder / "mine.txt").read_text() == "second"
    assert list(tmp_path.iterdir()) == [folder]


def test_json_is_readable_and_refuses_nan(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"name": "東京", "value": None})
    assert "東京" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "東京", "value": None}
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    assert path.read_bytes() == before


def test_content_key_names_content():
    assert content_key({"b": 1, "a": [2, "ä"]}) == content_key({"a": [2, "ä"], "b": 1})
    keys = [
        content_key(*parts) for parts in [("ab",), ("a", "b"), (["a", "b"],), ("a", None), (1,), ("1",), (1.5,), ()]
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)
    # Caches outlive a version: the key of the same content must not change.
    assert content_key("a", {"b": 1}) == "3d6f51e1fd2489c7f062f0347a710fa6"


def test_file_sha256(tmp_path):
    (tmp_path / "empty").touch()
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
