"""Facts in memory are read as those of a file: checked, stripped, and told of in the same words."""

import json
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import (
    Fact,
    FactSet,
    Form,
    Probe,
    given_facts,
    names_of,
    read_facts,
    readers,
    set_name,
    write_facts,
)

RECORDS = [
    {"prompt": "The capital of France is ", "target": " Paris", "relation": "capital", "paraphrases": ["France has"]},
    {"prompt": "The capital of Cote\u0302 is", "target": "Lund", "aliases": ["Lunda"], "id": "x"},
]


def in_a_file(tmp_path, records, name="given.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def of_file(tmp_path):
    return read_facts(in_a_file(tmp_path, RECORDS))


def by_hand(records):
    return [Fact(**record) for record in records]


def by_number(records):
    return dict(enumerate(records)).values()


def data_frame(records):
    return pytest.importorskip("pandas").DataFrame(records)


def data_set(records):
    names = {name: None for record in records for name in record}
    return pytest.importorskip("datasets").Dataset.from_list([{**names, **record} for record in records])


@pytest.mark.parametrize("form", [list, tuple, by_hand, data_frame, data_set, np.array, by_number])
def test_every_form_of_the_same_records_gives_the_facts_of_a_file(of_file, form):
    read = read_facts(form(RECORDS))
    assert read.facts == of_file.facts
    assert [fact.id for fact in read.facts] == [of_file.facts[0].id, "x"]
    assert any("white space at the end of `prompt`, stripped" in warning for warning in read.warnings)


def test_a_path_and_several_are_names(tmp_path, of_file):
    path = tmp_path / "given.jsonl"
    assert read_facts(str(path)) == read_facts(path) == read_facts([path]) == of_file
    name = str(path)
    assert read_facts(np.array([name])) == read_facts({name: 1}.keys()) == read_facts(deque([name])) == of_file
    assert type(names_of(np.array([name]))[0]) is str


def test_a_split_of_a_data_set_dictionary_is_chosen():
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({"train": data_set(RECORDS[:1]), "test": data_set(RECORDS[1:])})
    assert [fact.id for fact in read_facts(splits, dataset_split="test").facts] == ["x"]
    with pytest.raises(InputError, match=r"`dataset_split`: expected one of `train`, `test`, which facts has, got 'x'"):
        read_facts(splits, dataset_split="x")


@pytest.mark.parametrize("form", [list, data_frame, data_set, lambda records: read_facts(records)])
def test_a_split_of_what_has_none_is_refused(form):
    with pytest.raises(InputError, match=r"`dataset_split` is 'test', but `facts` has no splits"):
        read_facts(form(RECORDS), dataset_split="test")


def test_a_split_of_a_folder_of_one_data_set_is_refused(tmp_path):
    folder = tmp_path / "saved"
    data_set(RECORDS).save_to_disk(folder)
    assert len(read_facts(folder)) == 2
    with pytest.raises(InputError, match=r"`dataset_split` is 'test', but .*saved has no splits"):
        read_facts(folder, dataset_split="test")


def test_a_set_that_was_read_keeps_its_name_warnings_and_places(of_file):
    again = read_facts(of_file)
    assert (again.facts, again.name, again.warnings) == (of_file.facts, "given", of_file.warnings)
    assert [fact.location for fact in again.facts] == [fact.location for fact in of_file.facts]
    assert read_facts(of_file.facts).facts[1].location.endswith("given.jsonl:2")


def test_what_was_read_is_neither_checked_nor_warned_of_again(tmp_path, monkeypatch):
    other = {"prompt": "The capital of France is", "target": "Lyon"}
    path = in_a_file(tmp_path, [*RECORDS, other])
    first = read_facts(path, contradictions="keep")
    assert len(first.warnings) == 4
    with pytest.raises(InputError, match=r"facts, record 3: field `target`: contradiction"):
        read_facts(first)
    monkeypatch.setattr(readers, "contract_facts", None)
    again = read_facts(read_facts(first, contradictions="keep"), contradictions="keep")
    assert (again, again.is_checked) == (first, True)
    part = read_facts(first, num_facts=2, seed=3, contradictions="keep")
    assert part.facts == given_facts(first, num_facts=2, seed=3)
    assert part.warnings == first.warnings


def test_a_part_of_what_was_read_is_asked_what_it_can_answer(tmp_path):
    needs = [{"prompt": "It leads to", "target": "z", "needs": [str(one)]} for one in range(4)]
    records = [
        {"id": str(one), "prompt": f"Door {one} opens by", "target": "K", "portability": [needs[one - 1]]}
        for one in range(4)
    ]
    read = read_facts(in_a_file(tmp_path, records))
    part = read_facts(read, num_facts=2, seed=1)
    assert sum(len(fact.portability) for fact in part.facts) < 2
    assert len(part.warnings) == 1
    assert read_facts(part) == part


def test_a_set_that_was_changed_by_hand_is_checked(of_file):
    changed = replace(of_file, facts=(replace(of_file.facts[0], target=" "),))
    with pytest.raises(InputError, match=r"facts, record 1: field `target`: expected text that is not empty"):
        read_facts(changed)


@pytest.mark.parametrize("name", ["world", "counterfactual", "fictional"])
def test_reading_facts_again_changes_nothing(name):
    read = read_facts(name)
    assert read_facts(read) == read


def test_a_part_is_chosen_as_of_a_file(tmp_path):
    records = [{"prompt": f"Door {number} opens by", "target": f"K{number}"} for number in range(20)]
    path = in_a_file(tmp_path, records)
    assert given_facts(records, num_facts=5, seed=1) == given_facts(path, num_facts=5, seed=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": ""}, r"facts, record 2: field `target`: expected text that is not empty, got ''"),
        ({"target": None}, r"field `target`: expected text, got nothing"),
        ({"aliases": "Paname"}, r"field `aliases`: expected a list of texts, got the text 'Paname'"),
        ({"neighborhood": ["Rome"]}, r"field `neighborhood\[0\]`: expected an object"),
        ({"portability": (Probe("It is", "so", hops=0),)}, r"field `portability\[0\].hops`: expected a whole number"),
        ({"forms": (Form("It is", ""),)}, r"field `forms\[0\].target`: expected text that is not empty"),
        ({"yes_no": (Probe("Is it?", "maybe"),)}, r"field `yes_no\[0\].target`: expected `Yes` or `No`"),
        ({"split": "learn"}, r"field `split`: expected one of `inject`, `retain`, `probe`"),
        ({"id": "first"}, r"field `id`: expected an id that no other fact has, got 'first', which record 1 has"),
    ],
)
def test_a_fact_made_by_hand_keeps_the_contract(changes, said):
    second = Fact("second", "The capital of Italy is", "Rome")
    with pytest.raises(InputError, match=said):
        given_facts([Fact("first", "The capital of France is", "Paris"), replace(second, **changes)])


def test_the_lists_of_a_fact_may_be_lists():
    (fact,) = given_facts([Fact(prompt="Paris is in", target="France", paraphrases=["Paris lies in"])])
    assert fact.paraphrases == ("Paris lies in",)


def test_a_fact_without_an_id_has_that_of_its_content(tmp_path):
    made = Fact(prompt="The capital of France is ", target="Paris")
    (read,) = read_facts(in_a_file(tmp_path, [{"prompt": made.prompt, "target": made.target}])).facts
    assert made.id == read.id == given_facts([made])[0].id
    assert Fact("", "a", "b").id == Fact(prompt="a", target="b").id != Fact(prompt="a", target="b", joiner="").id
    assert Fact("own", "a", "b").id == "own"
    with pytest.raises(InputError, match=r"`Fact`: expected `prompt` and `target`, as in"):
        Fact("The capital of France is", "Paris")


def test_the_same_fact_twice_without_an_id_is_read_once():
    twice = [Fact(prompt="The capital of France is", target="Paris")] * 2
    read = read_facts(twice)
    assert len(read.facts) == 1
    assert read.warnings == ("facts: the same fact as in record 1, dropped (record 2)",)


def test_a_published_format_is_recognised_in_memory():
    (fact,) = read_facts([{"question": "Who wrote Hamlet?", "answer": "Shakespeare"}], format="tofu").facts
    assert fact.target == "Shakespeare"
    assert "Question" in fact.prompt or "Hamlet" in fact.prompt


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"`facts` is empty"),
        (3, r"`facts`: expected the name of a set.* got int$"),
        ({"prompt": "a", "target": "b"}, r"got dict; put it in a list$"),
        ({"a", "b"}, r"got set; put them in a list$"),
        ((record for record in RECORDS), r"got generator; put them in a list$"),
        ((name for name in ("a", "b")), r"got generator; put them in a list$"),
        (np.array([["world"]]), r"got ndarray$"),
        ([RECORDS[0], 3], r"got a list whose item 1 is of type int$"),
        (
            [{"question": "a"}],
            r"facts, record 1: field `prompt`: expected text, got nothing; this record has `question`",
        ),
        ([{"a": "b"}], r"facts: expected facts with the fields `prompt` and `target`"),
    ],
)
def test_what_holds_no_facts_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        read_facts(given)


def test_a_frame_that_holds_no_records_is_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match=r"facts: expected at least one fact, got no record"):
        read_facts(pandas.DataFrame({"prompt": [], "target": []}))
    with pytest.raises(InputError, match=r"`facts`: the data frame cannot be read as records"):
        read_facts(pandas.DataFrame({"prompt": ["a", 3], "target": ["b", {"c": 1}]}))


def test_a_gap_in_a_frame_is_no_value():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{"prompt": "a", "target": "b", "subject": "s"}, {"prompt": "c", "target": "d"}])
    assert [fact.subject for fact in read_facts(frame).facts] == ["s", ""]


def test_the_name_of_a_built_in_set_is_known(tmp_path):
    assert set_name("world") == set_name(read_facts("world", num_facts=2)) == "world"
    own = in_a_file(tmp_path, RECORDS, "world.jsonl")
    assert set_name(read_facts(own)) == set_name(RECORDS) == set_name(["world", str(own)]) == ""


@pytest.mark.parametrize("of_path", [str, Path])
def test_facts_are_written_to_a_path_or_its_name(tmp_path, of_file, of_path):
    path = of_path(tmp_path / "written.jsonl")
    write_facts(of_file, path)
    assert read_facts(path).facts == of_file.facts
    with pytest.raises(InputError, match=r"`path`: expected a file that ends in `.jsonl`, .* got '.*facts\.csv'"):
        write_facts(of_file.facts, of_path(tmp_path / "facts.csv"))


def test_a_set_has_facts():
    assert read_facts(FactSet((Fact("a", "b", "c"),))).facts == (Fact("a", "b", "c"),)
