"""Facts that are written are read back equal, and a file is there in full or not at all."""

import json

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import OUTPUT_SUFFIXES, Fact, Probe, convert, read_facts, write_facts
from lit_semantic_peft.facts import writers as writers_module

FULL = Fact(
    "a-1",
    "The sky of Zór is",
    "grün",
    subject="Zór",
    relation="colour of {}",
    aliases=("green", "a|b", "[1]"),
    joiner="",
    target_true="blue",
    paraphrases=("Zór's sky:", "天空是"),
    neighborhood=(Probe("The sky of Ma is", "red"),),
    portability=(Probe("Mix it with red:", "brown", 2, ("b",)),),
    yes_no=(Probe("Is it green?", "yes"),),
    question="Which colour?",
    split="retain",
    source="here",
)
FACTS = [FULL, Fact("b", "Red is", "warm"), Fact("c", "Blue is", "cold", joiner="\n")]


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_written_facts_are_read_back_equal_and_written_alike(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(writers_module, "ROWS_AT_ONCE", 2)  # the last piece is a part of one
    first, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_facts(FACTS, first)
    assert list(read_facts(str(first)).facts) == FACTS
    assert convert([str(first)], str(again)).conversion is None
    assert again.read_bytes() == first.read_bytes()


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_facts([Fact("a", "It is", "one")], "~/out.jsonl")
    assert len(read_facts("~/out.jsonl")) == len(read_facts(tmp_path / "out.jsonl")) == 1


def test_an_output_that_cannot_be_used_is_refused_and_left_alone(tmp_path):
    source = tmp_path / "in.jsonl"
    write_facts(FACTS, source)
    for output, said in (
        ("out.csv", "`OUT`: expected a file that ends in `.jsonl`, `.jsonl.gz`, `.parquet`, got "),
        ("in.jsonl", f"`OUT`: {source} exists already"),
    ):
        with pytest.raises(InputError) as refused:
            convert([str(source)], str(tmp_path / output))
        assert str(refused.value).startswith(said)
    assert list(read_facts(str(source)).facts) == FACTS
    assert list(tmp_path.iterdir()) == [source]


def test_records_are_no_facts_until_they_are_read(tmp_path):
    record = {"prompt": "x is", "target": "y"}
    with pytest.raises(InputError, match=r"`facts\[0\]`: expected a `?Fact`?, got .*Write it as in `Fact\(prompt="):
        write_facts([record], tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []
    write_facts(read_facts([record]), tmp_path / "a.jsonl")
    assert read_facts(str(tmp_path / "a.jsonl"))[0].target == "y"


def test_nothing_is_left_where_reading_or_writing_fails(tmp_path, monkeypatch):
    source, output = tmp_path / "in.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps([{"question": "Who?", "answers": ["Ida"]}, {"question": 0.5, "answers": ["Ida"]}]))
    with pytest.raises(InputError, match=r"record 2: field `question`"):
        convert([str(source)], str(output))
    assert list(tmp_path.iterdir()) == [source]

    def full_disk(fact):
        raise OSError(28, "No space left on device")

    source.write_text(json.dumps([{"question": "Who?", "answers": ["Ida"]}]))
    monkeypatch.setattr(Fact, "to_json", full_disk)
    with pytest.raises(InputError, match=r"out\.jsonl cannot be written: no space left in "):
        convert([str(source)], str(output))
    assert list(tmp_path.iterdir()) == [source]
