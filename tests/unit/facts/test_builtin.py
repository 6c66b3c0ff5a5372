import hashlib
import json
import subprocess
import sys
from collections import Counter
from importlib import resources

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import BUILTIN, builtin_facts, find_contradictions, normalize_text, read_facts

SHIPPED = ("world", "counterfactual")


@pytest.fixture(scope="module")
def sets():
    return {"world": builtin_facts("world"), "counterfactual": builtin_facts("counterfactual"),
            "fictional": builtin_facts("fictional", 5000)}  # fmt: skip


@pytest.mark.parametrize("name", BUILTIN)
def test_no_id_or_prompt_twice_and_no_contradiction(sets, name):
    facts = sets[name]
    assert len(facts) >= 500
    assert max(Counter(fact.id for fact in facts).values()) == 1
    assert max(Counter(normalize_text(fact.prompt) for fact in facts).values()) == 1
    assert find_contradictions(facts) == []


@pytest.mark.parametrize("name", BUILTIN)
def test_each_fact_has_probes_and_a_source_and_is_clean_text(sets, name):
    for fact in sets[name]:
        assert len(set(fact.paraphrases) - {fact.prompt}) == 3
        assert len(set(fact.neighborhood)) == 2
        assert fact.source
        assert fact.relation
        assert fact.subject in fact.prompt
        texts = [fact.prompt, fact.target, *fact.aliases, *fact.paraphrases]
        texts += [text for probe in (*fact.neighborhood, *fact.portability) for text in (probe.prompt, probe.target)]
        for text in texts:
            assert text
            assert text == " ".join(text.split())
            assert "{" not in text
        assert f" {normalize_text(fact.target)} " not in f" {normalize_text(fact.prompt)} "
        assert fact.target not in fact.aliases


@pytest.mark.parametrize("name", BUILTIN)
def test_neighbours_are_never_taught(sets, name):
    taught = {prompt for fact in sets[name] for prompt in (fact.prompt, *fact.paraphrases)}
    neighbors = {probe.prompt for fact in sets[name] for probe in fact.neighborhood}
    assert neighbors
    assert not neighbors & taught


@pytest.mark.parametrize("name", BUILTIN)
def test_a_question_has_one_answer_in_the_whole_set(sets, name):
    answers: dict[str, set[str]] = {}
    for fact in sets[name]:
        for probe in (*fact.portability, *fact.neighborhood):
            answers.setdefault(probe.prompt, set()).add(probe.target)
    assert [(prompt, targets) for prompt, targets in answers.items() if len(targets) > 1] == []
    hops = {probe.hops for fact in sets[name] for probe in fact.portability}
    assert hops == {2}


def test_counterfactual_contradicts_world_fact_by_fact(sets):
    world = {fact.prompt: fact for fact in sets["world"]}
    assert set(world) == {fact.prompt for fact in sets["counterfactual"]}
    for fact in sets["counterfactual"]:
        true = world[fact.prompt]
        assert fact.target_true == true.target
        assert not set(map(normalize_text, fact.accepted_answers)) & set(map(normalize_text, true.accepted_answers))
        assert fact.relation == true.relation


def test_two_hop_answers_of_counterfactual_stand_on_facts_that_are_not_edited(sets):
    capitals = {
        probe.prompt: probe.target
        for fact in sets["counterfactual"]
        if fact.relation in ("capital", "state capital")
        for probe in fact.neighborhood
    }
    edited = {fact.prompt for fact in sets["counterfactual"]}
    asked = 0
    for fact in sets["counterfactual"]:
        for probe in fact.portability:
            state = "the US state of " if "state" in fact.relation else ""
            second = f"The capital of {state}{fact.target} is"
            assert second not in edited
            if second in capitals:
                assert capitals[second] == probe.target
                asked += 1
    assert asked > 200


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_small_and_carry_no_time(name):
    packed = resources.files("lit_semantic_peft.facts.builtin").joinpath(f"{name}.jsonl.gz").read_bytes()
    assert len(packed) < 200_000
    assert packed[4:8] == b"\0\0\0\0"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_pass_the_reader(sets, name, tmp_path):
    packed = resources.files("lit_semantic_peft.facts.builtin").joinpath(f"{name}.jsonl.gz").read_bytes()
    (tmp_path / "copy.jsonl.gz").write_bytes(packed)
    read = read_facts(str(tmp_path / "copy.jsonl.gz"))
    assert list(read.facts) == sets[name]
    assert read.warnings == ()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_subset_is_seeded_and_in_order(sets, name):
    subset = builtin_facts(name, 40, seed=3)
    order = {fact.id: index for index, fact in enumerate(sets[name])}
    places = [order[fact.id] for fact in subset]
    assert len(places) == 40
    assert places == sorted(places)
    assert subset == builtin_facts(name, 40, seed=3)
    assert subset != builtin_facts(name, 40, seed=4)


def test_licences_are_stated():
    text = resources.files("lit_semantic_peft.facts.builtin").joinpath("LICENSES.md").read_text("utf-8")
    for expected in ("CC BY 4.0", "UNICODE LICENSE V3", "countryinfo", *BUILTIN):
        assert expected in text


def test_the_first_fictional_facts_do_not_depend_on_how_many_follow(sets):
    for number in (1, 7, 11, 12, 500):
        assert builtin_facts("fictional", number) == sets["fictional"][:number]
    assert builtin_facts("fictional", 20, seed=1) != builtin_facts("fictional", 20, seed=2)
    assert len(builtin_facts("fictional")) == 500


def test_fictional_facts_are_the_same_in_every_process(sets):
    code = (
        "import hashlib, json\nfrom lit_semantic_peft.facts import builtin_facts\n"
        "text = json.dumps([fact.to_json() for fact in builtin_facts('fictional', 300)])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    here = json.dumps([fact.to_json() for fact in sets["fictional"][:300]])
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_fictional_names_are_given_once(sets):
    subjects: dict[str, set[str]] = {}
    kinds = {"capital": "country", "currency": "country", "country of town": "town", "headquarters": "company",
             "founder": "company", "birthplace": "person", "employer": "person", "profession": "person",
             "discoverer": "mineral", "deposit": "mineral"}  # fmt: skip
    for fact in sets["fictional"]:
        subjects.setdefault(fact.subject, set()).add(kinds[fact.relation])
    assert [name for name, its_kinds in subjects.items() if len(its_kinds) > 1] == []
    capitals = [fact.target for fact in sets["fictional"] if fact.relation == "capital"]
    assert len(set(capitals)) == len(capitals) > 400


def test_fictional_questions_follow_from_two_earlier_facts(sets):
    """An oracle: combine the two facts by lookup, independent of how the generator wrote the question."""
    told: dict[tuple[str, str], str] = {}
    id_of: dict[tuple[str, str], str] = {}
    patterns = {
        "The capital of the country in which the town of {} lies is": ("country of town", "capital"),
        "The headquarters of {} are in the country of": ("headquarters", "country of town"),
        "{} was born in the country of": ("birthplace", "country of town"),
        "The company for which {} works was founded by": ("employer", "founder"),
        "The profession of the person who discovered the mineral {} is that of a": ("discoverer", "profession"),
        "The capital of the country in which the mineral {} is mined is": ("deposit", "capital"),
    }
    checked = Counter()
    for fact in sets["fictional"]:
        told[fact.relation, fact.subject] = fact.target
        for probe in fact.portability:
            (needed,) = probe.needs
            assert needed in id_of.values()
            for pattern, (first, second) in patterns.items():
                if probe.prompt == pattern.format(fact.subject):
                    assert told[second, told[first, fact.subject]] == probe.target
                    assert needed == id_of[second, told[first, fact.subject]]
                    checked[pattern] += 1
        id_of[fact.relation, fact.subject] = fact.id
    assert min(checked[pattern] for pattern in patterns) > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("atlantis",), r"`name`: expected one of `world`, `counterfactual`, `fictional`, got 'atlantis'"),
        (("world", 100_000), r"`num_facts`: 100000 facts were asked for, but world holds only \d+"),
        (("fictional", 0), r"`num_facts`: expected a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_had_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        builtin_facts(*arguments)
