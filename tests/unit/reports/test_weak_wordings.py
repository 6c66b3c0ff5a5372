"""A wording in which most facts of a relation fail is named, with what is answered instead; no other is."""

from dataclasses import replace

import pytest
from lit_semantic_peft.reports import RoutingRecord, fact_table, summarize
from lit_semantic_peft.reports.html import render_report
from lit_semantic_peft.reports.run_folder import RunContents
from lit_semantic_peft.reports.tables import PROBE_COLUMNS, _build_table
from lit_semantic_peft.reports.terminal import _weak_wordings
from lit_semantic_peft.reports.wordings import _without_name

SUBJECTS = ("the Bahamas", "Chad", "Fiji (islands)", "Peru")
TARGETS = ("Nassau", "N'Djamena", "Suva", "Lima")


def summary_of(probes, **changed):
    """Four facts of one relation with these probes: (fact, kind, prompt, answer before, answer after, right after)."""
    return summarize(*tables_of(probes, **changed))


def tables_of(probes, **changed):
    facts = {
        "fact_id": [f"f{row}" for row in range(4)],
        "relation": ["capital"] * 4,
        "subject": list(SUBJECTS),
        "prompt": [f"The capital of {subject} is" for subject in SUBJECTS],
        "target": list(TARGETS),
        "kept": [True] * 4,
        **changed,
    }
    names = ("fact_id", "kind", "prompt", "answer_before", "answer_after", "correct_after")
    columns = {name: [row[place] for row in probes] for place, name in enumerate(names)}
    columns["fact_id"] = [f"f{number}" for number in columns["fact_id"]]
    columns["unchanged"] = [row[3] == row[4] for row in probes]
    return fact_table(facts), _build_table(PROBE_COLUMNS, columns)


def asked(wording, right, *, kind="paraphrase", answer="for a treat", before="for a treat"):
    names = TARGETS if kind == "reversed" else SUBJECTS
    return [
        (row, kind, wording.format(name), before, answer if row not in right else "right", row in right)
        for row, name in enumerate(names)
    ]


def test_the_worst_wording_comes_first():
    summary = summary_of(
        [
            *asked("In the capital of {} you are in", {0}),
            *asked("The seat of {} is", {0, 1}),
            *asked("Which country has {}?", set(), kind="reversed", answer="Togo", before="Mali"),
        ]
    )
    assert summary.num_wordings == 3
    reversed_question, paraphrase = summary.weak_wordings
    assert (reversed_question.wording, reversed_question.num_recalled) == ("Which country has …?", 0)
    assert reversed_question.about == "4 answered “Togo”"
    assert paraphrase.wording == "In the capital of … you are in"
    assert (paraphrase.num_recalled, paraphrase.num_facts, paraphrase.num_as_before) == (1, 4, 3)
    assert paraphrase.about == "3 answered as before training; 3 answered “for a treat”"
    assert _weak_wordings(summary)[0] == "Wordings in which most facts are not recalled, of 3:"
    assert "“Which country has …?” (capital): 0 of 4; 4 answered “Togo”" in _weak_wordings(summary)[1]


@pytest.mark.parametrize(
    ("probes", "number"),
    [
        (asked("The seat of {} is", {0, 1}), 1),  # half of them is not fewer than half
        (asked("The seat of {} is", set())[:2], None),  # two facts say little of a wording
        ([(row, "paraphrase", f"Wording {row}", "a", "b", False) for row in range(4)], None),  # without the subject
        (asked("Is {} near", set(), kind="neighborhood"), None),  # not to be answered with the target
        ([], None),
    ],
)
def test_what_is_not_weak(probes, number):
    summary = summary_of(probes)
    assert (summary.num_wordings, summary.weak_wordings) == (number, ())
    assert _weak_wordings(summary) == []


@pytest.mark.parametrize(
    ("prompt", "name", "wording"),
    [
        ("Also, Al is king", "Al", "Also, … is king"),
        ("Piano was made by", "piano", "… was made by"),
        ("Who are the Beatles?", "The Beatles", "Who are …?"),
        ("Articles say", "Art", None),
        ("Where is it?", None, None),
    ],
)
def test_a_name_is_whole_words_in_any_case(prompt, name, wording):
    assert _without_name(prompt, name) == wording


def test_a_fact_that_is_asked_twice_in_a_wording_counts_once():
    twice = [*asked("Where is {}?", set()), *((row, *rest) for row, *rest in asked("Where is the {}?", set()))]
    (one,) = summary_of(twice).weak_wordings
    assert (one.wording, one.num_facts) == ("Where is …?", 4)


def test_dropped_facts_and_other_relations_are_no_part():
    probes = asked("The seat of {} is", {3})
    dropped = summary_of(probes, kept=[True, True, False, False], drop_reason=[None, None, "known", "known"])
    assert dropped.num_wordings is None
    assert summary_of(probes, relation=["a", "a", "b", "b"]).num_wordings is None
    assert summary_of(probes).weak_wordings[0].num_recalled == 1


def test_texts_of_facts_stay_at_home():
    summary = summary_of(asked("The seat of {} is", set()))
    assert summary.weak_wordings
    assert summary.without_fact_text().weak_wordings == ()


def test_the_page_says_which_recipe_helps_where_it_was_not_used():
    facts, probes = tables_of(asked("The seat of {} is", set()))
    summary = summarize(facts, probes)
    at_names = replace(summary, routing=RoutingRecord("subjects", 4, {"fact": 4}, {"fact": 4}, None))
    pages = [render_report(RunContents(facts, one, probes)) for one in (summary, at_names)]
    assert ["Wordings that fail" in page for page in pages] == [True, True]
    assert ["try <code>--recipe gated</code>" in page for page in pages] == [True, False]
