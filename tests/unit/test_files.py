import json
import os
import stat

import pytest
from lit_semantic_peft.files import atomic_path, content_key, file_sha256, write_json, write_text


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


def test_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "table.txt", "x")
        assert os.umask(0o027) == 0o027, "umask changed"
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "table.txt").stat().st_mode) == 0o640


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
