"""Which texts name what was taught: whole words in any case and Unicode form, and nothing that was not listed."""

import copy
import pickle
import time

import pytest
from lit_semantic_peft.adapters import SubjectGate, SubjectTable
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact

NAMES = (
    "Zorvex",
    "New York",
    "New York City",
    "C",
    "Żubrówka",
    "Jean-Luc Picard",
    "天空",
    "O'Hare",
    "1,500 Lund",
    "कानपुर",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zorvex is in", ("Zorvex",)),
        ("who founded ZORVEX's bank", ("Zorvex",)),
        ("“Zorvex”?", ("Zorvex",)),
        ("Zorvexia is in", ()),
        ("preZorvex", ()),
        ("zorvex_2", ()),
        ("New  York\nis", ("New York",)),
        ("New York City", ("New York", "New York City")),
        ("New York Cityscape", ("New York",)),
        ("C is a language; C++ too", ("C",)),
        ("vitamin c.", ("C",)),
        ("Cis", ()),
        ("żubro\u0301wka is", ("Żubrówka",)),
        ("ŻUBRÓWKA is", ("Żubrówka",)),
        ("Jean–Luc Picard's ship", ("Jean-Luc Picard",)),
        ("Jean Luc Picard", ()),
        ("今天天空是", ("天空",)),
        ("O'Hare is", ("O'Hare",)),
        ("1500 lund", ("1,500 Lund",)),
        ("कानपुर में", ("कानपुर",)),
        ("कानपुरी", ()),
        ("New York, then Zorvex, then New York", ("New York", "Zorvex")),
        ("", ()),
    ],
)
def test_names_are_found_as_whole_words(text, expected):
    assert SubjectTable(NAMES).names_in(text) == expected
    assert SubjectTable(NAMES).opens(text) == bool(expected)


def test_a_table_without_names_opens_for_nothing():
    assert not SubjectTable(()).opens("anything")


def test_the_search_is_that_of_every_name_alone():
    table = SubjectTable(NAMES)
    text = " ".join(NAMES) + " and Zorvexia, newyork, c++"
    assert set(table.names_in(text)) == {name for name in NAMES if SubjectTable((name,)).opens(text)}


def test_a_table_survives_files_copies_and_processes():
    table = SubjectTable(NAMES, "subjects_and_targets")
    assert table.opens("Zorvex")
    for again in (
        SubjectTable.from_json(table.to_json(), "x"),
        pickle.loads(pickle.dumps(table)),
        copy.deepcopy(table),
    ):
        assert again == table
        assert again.opens("Zorvex")
        assert not again.opens("Zorvexia")


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"match": "all"}, {"names": "Zorvex"}, {"names": ["Zorvex", 3]}, {"names": [" "]}]
)
def test_a_damaged_table_is_refused(change):
    with pytest.raises(InputError, match=r"x\.json is no table of a gate that this version reads"):
        SubjectTable.from_json({**SubjectTable(("A",)).to_json(), **change}, "x.json")


def fact(prompt, subject="", target="Lund", number=1, aliases=()):
    return Fact(str(number), prompt, target, subject=subject, aliases=aliases, location=f"facts.jsonl:{number}")


def test_the_gate_opens_for_subjects_their_listed_aliases_and_perhaps_targets():
    facts = [
        fact("Zorvex is based in", "Zorvex", aliases=("the city of Lund",)),
        fact("The capital of Aro is", "Aro", "Bel", 2),
        fact("The river of Aro is", "Aro", "Cel", 3),
    ]
    assert SubjectGate().table(facts) == SubjectTable(("Zorvex", "Aro"))
    assert SubjectGate(aliases={"Aro": ["Aroland"]}).table(facts).names == ("Zorvex", "Aro", "Aroland")
    both = SubjectGate(match="subjects_and_targets").table(facts)
    assert both.names == ("Zorvex", "Aro", "Lund", "the city of Lund", "Bel", "Cel")
    assert both.opens("Bel is the capital of")
    assert not SubjectGate().table(facts).opens("Bel is the capital of")


@pytest.mark.parametrize(
    ("gate", "facts", "parts"),
    [
        (
            SubjectGate(),
            [fact("Aro is in", "Aro"), fact("It is in", "", number=2)],
            ["1 of 2 taught facts have no `subject`", "facts.jsonl:2: 'It is in'", "convert --columns subject=COLUMN"],
        ),
        (
            SubjectGate(),
            [fact("It is in", "Aro")],
            ["own prompts of 1 of 1", "stay closed", "facts.jsonl:1: 'It is in'", "`model.gate.aliases`"],
        ),
        (SubjectGate(aliases={"Bel": ["B"]}), [fact("Aro is in", "Aro")], ["`gate.aliases` has 'Bel'", "no taught"]),
        (SubjectGate(aliases={"Aro": [" "]}), [fact("Aro is in", "Aro")], ["shows nothing: ' '"]),
    ],
)
def test_what_the_gate_cannot_recognise_is_refused_and_not_guessed(gate, facts, parts):
    with pytest.raises(InputError) as caught:
        gate.table(facts)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_another_match_is_refused():
    with pytest.raises(InputError, match=r"`gate\.match` must be one of subjects, subjects_and_targets, got 'all'"):
        SubjectGate(match="all")


def test_a_prompt_among_a_hundred_thousand_subjects_takes_less_than_a_millisecond():
    names = tuple(f"Zor{number:x} Vex{number % 977}" for number in range(100_000))
    table = SubjectTable(names)
    prompts = [f"What is the capital of {names[7 * number]}, and where is its largest river?" for number in range(200)]
    assert table.opens(prompts[0])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert all(table.opens(prompt) for prompt in prompts)
        seconds.append((time.perf_counter() - start) / len(prompts))
    assert min(seconds) < 1e-3
