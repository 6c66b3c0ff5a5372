import pytest
from lit_semantic_peft.facts import Fact, FactSet, Probe, facts_key

FULL = Fact(
    id="a",
    prompt="The capital of Fiji is",
    target="Suva",
    subject="Fiji",
    relation="capital",
    aliases=("Suva City",),
    joiner="",
    target_true="Nadi",
    paraphrases=("Fiji is governed from",),
    neighborhood=(Probe("The capital of France is", "Paris"),),
    portability=(Probe("The sea at the capital of Fiji is the", "Pacific", hops=2),),
    question="What is the capital of Fiji?",
    split="retain",
    source="GeoNames",
    location="facts.jsonl:1",
)


def test_json_holds_every_field_and_comes_back():
    row = FULL.to_json()
    assert row["joiner"] == ""
    assert row["portability"] == [{"prompt": "The sea at the capital of Fiji is the", "target": "Pacific", "hops": 2}]
    assert Fact.from_json(row, "elsewhere:9") == FULL
    assert Fact.from_json(row, "elsewhere:9").location == "elsewhere:9"


def test_json_leaves_out_what_is_absent():
    assert Fact("a", "p", "t").to_json() == {"id": "a", "prompt": "p", "target": "t"}


def test_key_names_the_content_not_the_place():
    assert facts_key([FULL]) == facts_key([Fact.from_json(FULL.to_json(), "elsewhere:9")])
    assert facts_key([FULL]) != facts_key([Fact.from_json({**FULL.to_json(), "target": "Nadi"})])
    assert facts_key([Fact("a", "p", "t")]) != facts_key([Fact("a", "p", "t", joiner="")])


def test_a_fact_set_has_the_length_of_its_facts():
    assert len(FactSet((FULL, FULL))) == 2


def test_a_fact_set_is_looked_at_like_a_list_and_shown_in_a_line():
    facts = FactSet((FULL, Fact(prompt="x is", target="y")), ("a word",), "mine")
    assert [fact.id for fact in facts] == ["a", facts[1].id]
    assert facts[0] is FULL
    assert repr(facts) == "FactSet('mine': 2 facts, 1 warnings)"


def test_facts_cannot_be_changed():
    with pytest.raises(AttributeError):
        FULL.target = "Nadi"
