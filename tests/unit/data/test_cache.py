import dataclasses
import importlib
import json
import linecache
import logging
import sys
import textwrap

import numpy as np
import pytest
from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.data.scoring import score_manifest, scored_from_table, scores_table
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import BaseModel, BaseModelSource
from lit_semantic_peft.semantics import (
    ExpectedEmbeddingDistance,
    HiddenStateDistance,
    ScoredFacts,
    SentenceDistance,
    Surprisal,
)
from lit_semantic_peft.tokens import FactEncoder

from fixtures.models import byte_level_bpe

FACTS = [
    Fact("a", "The capital of France is", "Paris"),
    Fact("b", "日本の首都は", "東京", joiner="", relation="capital"),
]
SCORED = ScoredFacts(
    fact_id=("a", "b"),
    relation=("", "capital"),
    distance=np.array([0.1 + 0.2, 1 / 3]),
    base_nll=np.array([5.5, 1e-300]),
    is_known=np.array([False, True]),
    base_answer=("", "東京\n"),
    distances={"HiddenStateDistance": np.array([0.1 + 0.2, 1 / 3]), "Surprisal": np.array([5.5, 1e-300])},
)


def found(folder, fingerprint="f" * 32, dtype="float32"):
    """A base model whose files were found in a folder."""
    base = BaseModel("tiny", dtype=dtype)
    base.__dict__["source"] = BaseModelSource("tiny", folder, "tiny", fingerprint)
    return base


@pytest.fixture
def inputs(tmp_path):
    """Arguments of `score_manifest`, by name."""
    return {
        "facts": FACTS,
        "base": found(tmp_path),
        "encoder": FactEncoder(byte_level_bpe()),
        "distances": [HiddenStateDistance(), Surprisal()],
        "is_checked": True,
    }


@pytest.fixture
def cache(tmp_path):
    return ContentCache(tmp_path / "scores")


def load(cache, manifest):
    return cache.load_table(manifest, lambda table: scored_from_table(table, manifest["distances"][0]["name"]))


def load_part(cache, manifest, number):
    return cache.load_part(manifest, number, lambda table: scored_from_table(table, "HiddenStateDistance"))


def assert_equal(left, right):
    for field in dataclasses.fields(ScoredFacts):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "distances":
            assert list(a) == list(b)
            a, b = np.stack(list(a.values())), np.stack(list(b.values()))
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


def test_scores_come_back_bit_for_bit(cache, inputs):
    manifest = score_manifest(**inputs)
    assert load(cache, manifest) is None
    cache.store_table(manifest, scores_table(SCORED))
    assert_equal(load(ContentCache(cache.folder), score_manifest(**inputs)), SCORED)


def test_a_readable_manifest_lies_beside_the_table(cache, inputs):
    manifest = score_manifest(**inputs)
    cache.store_table(manifest, scores_table(SCORED))
    table, beside = sorted(cache.folder.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (table.stem, table.suffix, beside.suffix) == (beside.stem, ".parquet", ".json")
    assert json.loads(beside.read_text(encoding="utf-8")) == manifest
    first = manifest["distances"][0]
    assert first["class"].endswith(".HiddenStateDistance")
    assert first["settings"] == {"pooling": "mean", "centered": False}


CHANGES = {
    "target": lambda one: one | {"facts": [dataclasses.replace(FACTS[0], target="Lyon"), FACTS[1]]},
    "alias": lambda one: one | {"facts": [dataclasses.replace(FACTS[0], aliases=("Lutetia",)), FACTS[1]]},
    "joiner": lambda one: one | {"facts": [FACTS[0], dataclasses.replace(FACTS[1], joiner=" ")]},
    "order": lambda one: one | {"facts": FACTS[::-1]},
    "fewer": lambda one: one | {"facts": FACTS[:1]},
    "weights": lambda one: one | {"base": found(one["base"].source.folder, "0" * 32)},
    "template": lambda one: one | {"encoder": FactEncoder(byte_level_bpe(), template="chat")},
    "end": lambda one: one | {"encoder": FactEncoder(byte_level_bpe(), stop_ids=[9])},
    "date": lambda one: one | {"encoder": FactEncoder(byte_level_bpe(), chat_template_kwargs={"date_string": "1 May"})},
    "pooling": lambda one: one | {"distances": [HiddenStateDistance("first"), Surprisal()]},
    "centered": lambda one: one | {"distances": [HiddenStateDistance(centered=True), Surprisal()]},
    "distance": lambda one: one | {"distances": [ExpectedEmbeddingDistance(), Surprisal()]},
    "more": lambda one: one | {"distances": [HiddenStateDistance(), Surprisal(), ExpectedEmbeddingDistance()]},
    "first": lambda one: one | {"distances": [Surprisal(), HiddenStateDistance()]},
    "dtype": lambda one: one | {"base": found(one["base"].source.folder, dtype="bfloat16")},
    "self_check": lambda one: one | {"is_checked": False},
    "prefix_tree": lambda one: one | {"prefix_tree": False},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_number_changes_the_key(cache, inputs, change):
    cache.store_table(score_manifest(**inputs), scores_table(SCORED))
    assert load(cache, score_manifest(**CHANGES[change](inputs))) is None


def test_what_changes_no_number_does_not(cache, inputs, tmp_path):
    cache.store_table(score_manifest(**inputs), scores_table(SCORED))
    moved = dataclasses.replace(FACTS[0], location="elsewhere.jsonl:9")
    same = {
        "facts": [moved, FACTS[1]],
        "base": found(tmp_path / "elsewhere"),
        "encoder": FactEncoder(byte_level_bpe(), append_eos=False, max_length=64, stop_ids=[1]),
    }
    assert load(cache, score_manifest(**(inputs | same))) is not None


def test_a_distance_of_ones_own_is_measured_anew_when_its_source_changes(cache, inputs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for value in ("0.5", "1.5"):
        source = f"""
            from lit_semantic_peft.semantics import Surprisal
            class Mine(Surprisal):
                def measure(self, outputs):
                    return super().measure(outputs) * 0 + {value}
        """
        (tmp_path / "mine.py").write_text(textwrap.dedent(source), encoding="utf-8")
        sys.modules.pop("mine", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        keys.append(score_manifest(**inputs | {"distances": [importlib.import_module("mine").Mine()]}))
    assert keys[0] != keys[1]
    assert keys[1] == score_manifest(**inputs | {"distances": [sys.modules["mine"].Mine()]})


def test_an_encoder_is_known_by_its_content(cache, inputs, tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}", encoding="utf-8")
    keys = []
    for weights in (b"old", b"new"):
        (tmp_path / "encoder" / "model.safetensors").write_bytes(weights)
        keys.append(score_manifest(**inputs | {"distances": [SentenceDistance(str(tmp_path / "encoder"))]}))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_table_counts_as_absent_and_is_named(cache, inputs, caplog, damage):
    manifest = score_manifest(**inputs)
    cache.store_table(manifest, scores_table(SCORED))
    (path,) = cache.folder.glob("*.parquet")
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello" * 9}[damage])
    with caplog.at_level(logging.WARNING):
        assert load(cache, manifest) is None
    assert str(path) in caplog.text
    assert "made anew" in caplog.text
    cache.store_table(manifest, scores_table(SCORED))
    assert_equal(load(cache, manifest), SCORED)
    assert len(list(cache.folder.iterdir())) == 2, "a temporary file was left"


@pytest.mark.parametrize("column", ["fact_id", "base_nll", "distance_HiddenStateDistance"])
def test_a_readable_table_without_a_column_counts_as_damaged(cache, inputs, caplog, column):
    manifest = score_manifest(**inputs)
    cache.store_table(manifest, scores_table(SCORED).drop_columns([column]))
    cache.store_part(manifest, 0, scores_table(SCORED).drop_columns([column]))
    assert load(cache, manifest) is None
    assert load_part(cache, manifest, 0) is None
    assert caplog.text.count("made anew") == 2


def test_parts_are_there_until_the_table_is_whole(cache, inputs):
    manifest = score_manifest(**inputs)
    cache.store_part(manifest, 1, scores_table(SCORED))
    assert load_part(cache, manifest, 0) is None
    assert_equal(load_part(cache, manifest, 1), SCORED)
    assert load(cache, manifest) is None
    cache.store_table(manifest, scores_table(SCORED))
    assert load_part(cache, manifest, 1) is None
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".json", ".parquet"]


def test_arrays_come_back_bit_for_bit_and_a_damaged_one_counts_as_absent(cache, caplog):
    array = np.array([[0.1 + 0.2, 1e-300], [np.inf, -0.0]])
    cache.store_array({"what": 1}, array)
    assert cache.load_array({"what": 1}).tobytes() == array.tobytes()
    assert cache.load_array({"what": 2}) is None
    (path,) = cache.folder.glob("*.npy")
    path.write_bytes(path.read_bytes()[:20])
    assert cache.load_array({"what": 1}) is None
    assert str(path) in caplog.text
