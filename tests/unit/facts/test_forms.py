from dataclasses import replace

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import BUILTIN, Fact, Probe, builtin_facts, normalize_text
from lit_semantic_peft.facts.forms import (
    Cloze,
    FormContext,
    Given,
    InContext,
    Question,
    Reversed,
    Templates,
    asked_question,
    asked_reversed,
    builtin_templates,
    read_templates,
    relations_without,
    split_forms,
)
from lit_semantic_peft.facts.schema import Form

FRANCE = Fact(
    "france",
    "The capital of France is",
    "Paris",
    subject="France",
    relation="capital",
    paraphrases=("France has its capital in", "The seat of France is", "If you visit France's capital, it is"),
    question="What is the capital of France?",
)
ALL_SOURCES = [Given(0.2), Templates(0.2), Question(0.1), Reversed(0.1), Cloze(0.1), InContext(0.1)]


def forms_of(fact, *sources, others=(), **settings):
    return split_forms([fact, *others], sources, **settings)[0]


def prompts(taught):
    return [one.form.prompt for one in taught]


def test_without_sources_everything_is_asked_and_only_the_prompt_is_taught():
    (forms,) = split_forms([FRANCE], [])
    assert (forms.taught, forms.stopping, forms.asked) == ((), (), FRANCE)


@pytest.mark.parametrize("split", ["retain", "probe"])
def test_a_fact_that_is_not_trained_keeps_everything_for_asking(split):
    fact = replace(FRANCE, split=split, forms=(Form("Its capital:", "Paris"),))
    forms = forms_of(fact, *ALL_SOURCES, from_paraphrases=2)
    assert (forms.taught, forms.stopping, forms.asked) == ((), (), fact)


@pytest.mark.parametrize(
    ("given", "num_paraphrases", "moved", "taught", "stopping", "asked"),
    [
        ((), 3, 0, [], ["p0"], ["p1", "p2"]),
        ((), 3, 1, ["p0"], ["p1"], ["p2"]),
        ((), 3, 2, ["p0", "p1"], [], ["p2"]),
        ((), 3, 9, ["p0", "p1"], [], ["p2"]),
        ((), 1, 1, [], [], ["p0"]),
        ((), 0, 1, [], [], []),
        (("f0",), 0, 0, [], [], ["f0"]),
        (("f0", "f1"), 0, 0, ["f0"], [], ["f1"]),
        (("f0", "f1", "f2"), 0, 0, ["f0"], ["f1"], ["f2"]),
        (("f0", "f1", "f2"), 1, 0, ["f0", "f1"], ["f2"], ["p0"]),
        (("f0", "f1"), 3, 1, ["p0", "f0", "f1"], ["p1"], ["p2"]),
    ],
)
def test_asking_has_the_first_form_then_teaching_then_stopping(given, num_paraphrases, moved, taught, stopping, asked):
    fact = Fact(
        "a",
        "own",
        "t",
        forms=tuple(Form(prompt, "t") for prompt in given),
        paraphrases=tuple(f"p{number}" for number in range(num_paraphrases)),
    )
    forms = forms_of(fact, Given(0.4), from_paraphrases=moved)
    assert prompts(forms.taught) == taught
    assert [one.prompt for one in forms.stopping] == stopping
    assert list(forms.asked.paraphrases) == asked
    assert all(one.share == pytest.approx(0.4 / len(taught)) for one in forms.taught)


def test_a_given_form_with_another_target_is_taught_and_never_asked():
    fact = replace(
        FRANCE, paraphrases=(), forms=(Form("Paris is the capital of", "France"), Form("Its capital:", "Paris"))
    )
    forms = forms_of(fact, Given())
    assert prompts(forms.taught) == ["Paris is the capital of"]
    assert forms.asked.paraphrases == ("Its capital:",)


def test_a_given_form_that_repeats_what_is_asked_is_not_taught():
    repeated = [*FRANCE.paraphrases, FRANCE.prompt.upper(), asked_question(FRANCE), asked_reversed(FRANCE), "Near is"]
    fact = replace(
        FRANCE,
        forms=tuple(Form(prompt, "Paris") for prompt in (*repeated, "Other words:", "Still others:")),
        neighborhood=(Probe("Near is", "far"),),
    )
    forms = forms_of(fact, Given())
    first = FRANCE.paraphrases[0]  # would have been a stopping form
    assert (prompts(forms.taught), forms.stopping) == ([first, "Other words:", "Still others:"], ())


def test_a_question_has_frames_of_its_own_to_teach_to_stop_and_to_ask():
    forms = forms_of(FRANCE, Question(0.2))
    question = "What is the capital of France?"
    assert prompts(forms.taught) == [f"Q: {question}\nA:", question]
    assert f"Answer this question. {question} The answer is:" in [one.prompt for one in forms.stopping]
    assert asked_question(forms.asked) == f"Question: {question} Answer:"
    assert prompts(forms_of(FRANCE, Question(chat=True)).taught) == [question]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"question": None}, "Q: The capital of France is what?\nA:"),
        ({"question": None, "prompt": "Question: What is the capital? Answer:"}, None),
        ({"question": None, "joiner": ""}, None),
    ],
)
def test_a_prompt_becomes_a_question_where_it_can(changed, expected):
    taught = prompts(forms_of(replace(FRANCE, **changed), Question()).taught)
    assert taught[:1] == ([] if expected is None else [expected])


def test_the_subject_is_asked_from_the_target_only_where_it_is_unique():
    twin = replace(FRANCE, id="twin", prompt="The capital of Gaul is", subject="Gaul")
    assert forms_of(FRANCE, Reversed(), others=[twin]).taught == ()
    elsewhere = replace(twin, relation="residence")
    taught = forms_of(FRANCE, Reversed(), others=[elsewhere]).taught
    assert {one.form.target for one in taught} == {"France"}
    assert all("Paris" in one.form.prompt and "France" not in one.form.prompt for one in taught)
    assert forms_of(replace(FRANCE, subject=""), Reversed()).taught == ()


def test_a_gap_is_filled_with_the_target():
    taught = forms_of(FRANCE, Cloze()).taught
    assert prompts(taught)[0] == 'Fill the gap: "The capital of France is ___". Answer:'
    assert {one.form.target for one in taught} == {"Paris"}


def test_a_trainable_conclusion_is_taught_behind_its_facts_and_then_not_asked():
    other = Fact("river", "The river of Paris is the", "Seine", relation="river")
    conclusion = Probe("The river of France's capital is the", "Seine", 2, ("river",), trainable=True)
    fact = replace(FRANCE, portability=(conclusion, Probe("Its continent is", "Europe")))
    forms = forms_of(fact, InContext(), others=[other])
    assert prompts(forms.taught) == [
        "The capital of France is Paris. The river of Paris is the Seine. The river of France's capital is the"
    ]
    assert [one.prompt for one in forms.asked.portability] == ["Its continent is"]
    assert forms_of(fact, Cloze(), others=[other]).asked.portability == fact.portability


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_sets_never_meet_in_the_built_in_facts(name):
    facts = builtin_facts(name, 60 if name == "fictional" else None)
    for fact, forms in zip(facts, split_forms(facts, ALL_SOURCES, 1, name), strict=True):
        asked = {*forms.asked.paraphrases, asked_question(forms.asked), asked_reversed(forms.asked)} - {None}
        sets = [asked, {one.form.prompt for one in forms.taught}, {one.prompt for one in forms.stopping}, {fact.prompt}]
        together = [normalize_text(prompt) for one in sets for prompt in one]
        assert len(together) == len(set(together)), fact.id
        assert all(sets)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_relation_of_a_built_in_set_has_three_templates_in_words_of_its_own(name):
    facts = builtin_facts(name, 60 if name == "fictional" else None)
    templates = builtin_templates(name)
    assert relations_without(templates, facts) == {}
    for fact in facts:
        forms = [one.form(fact) for one in templates[fact.relation]]
        assert sum(form.target == fact.target for form in forms) >= 3
        taken = {normalize_text(prompt) for prompt in (fact.prompt, *fact.paraphrases)}
        assert not taken & {normalize_text(form.prompt) for form in forms}


def test_a_template_takes_the_article_of_the_prompt():
    gambia = replace(FRANCE, prompt="The capital of the Gambia is", target="Banjul", subject="Gambia")
    forms = [one.form(gambia) for one in builtin_templates("world")["capital"]]
    assert forms[0] == Form("The Gambia is governed from its capital,", "Banjul")
    assert Form("Banjul is the capital of", "the Gambia") in forms


YAML = 'capital:\n  - "{subject} is ruled from {target}."\n  - "The ruler of {subject} sits in {target}"\n'
JSONL = '{"relation": "capital", "template": "{subject} is ruled from {target}"}\n\n'


@pytest.mark.parametrize(("name", "content"), [("t.yaml", YAML), ("t.jsonl", JSONL)])
def test_templates_of_a_user(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    forms = forms_of(replace(FRANCE, paraphrases=()), Templates(file=name))
    assert prompts(forms.taught) == ["France is ruled from"]
    assert [one.prompt for one in forms.stopping] == (["The ruler of France sits in"] if name == "t.yaml" else [])
    unknown = replace(FRANCE, relation="river")
    assert relations_without(read_templates(name), [FRANCE, unknown, unknown]) == {"river": 2}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.yaml", "capital: {subject} is", r"t\.yaml is no YAML"),
        ("t.yaml", "- a", r"t\.yaml: expected a list of templates for each relation"),
        ("t.yaml", "capital: text", r"t\.yaml: relation 'capital': expected a list of texts"),
        (
            "t.yaml",
            "capital: ['{subject} is']",
            r"t\.yaml: relation 'capital': expected a sentence with \{subject\} and",
        ),
        ("t.yaml", "capital: ['{target} is {subject} now']", r"one of them at its end, got '\{target\} is"),
        ("t.yaml", "capital: ['{subject}{target}', '{target}{subject}']", None),
        ("t.yaml", "{}", r"t\.yaml holds no template"),
        (
            "t.jsonl",
            JSONL + '{"relation": "x"}',
            r't\.jsonl, line 3: expected \{"relation": \.\.\., "template": \.\.\.\}',
        ),
        ("t.jsonl", "{", r"t\.jsonl, line 1: expected"),
        ("missing.yaml", None, r"`templates`: missing\.yaml cannot be read"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    if said is None:
        assert len(read_templates(str(tmp_path / name))["capital"]) == 2
        return
    with pytest.raises(InputError, match=said):
        split_forms([FRANCE], [Templates(file=name)])


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_out_of_its_range_is_refused(share):
    with pytest.raises(InputError, match=r"`share` of Cloze must be in \(0, 1\]"):
        Cloze(share)


def test_the_templates_of_the_package_are_not_for_other_sets():
    assert FormContext([FRANCE], "facts.jsonl").templates(None) == {}
