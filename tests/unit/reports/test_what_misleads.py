"""Numbers that were right and misled: a question counts once, and what one answer brings is said."""

import numpy as np
import pytest
from lit_semantic_peft.reports.repetition import measure_repetition
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.sections import probe_view
from lit_semantic_peft.reports.sentences import summary_sentences
from lit_semantic_peft.reports.side_effects import measure_side_effects
from lit_semantic_peft.reports.summarize import summarize
from lit_semantic_peft.reports.tables import write_fact_table, write_probe_table


@pytest.fixture
def beside_one_neighbour(tmp_path):
    """Twenty kept facts of one relation, all beside the same neighbour, and one of them beside another as well."""
    folder, count = RunFolder(tmp_path), 20
    write_fact_table(
        folder.paths.facts,
        {
            "fact_id": [str(row) for row in range(count)],
            "relation": ["r"] * count,
            "prompt": [f"p{row}" for row in range(count)],
            "target": ["t"] * count,
            "kept": [True] * count,
            "locality": [0.0] * count,
            "num_neighbors": [1] * (count - 1) + [2],
        },
    )
    write_probe_table(
        folder.paths.probes,
        {
            "fact_id": [*(str(row) for row in range(count)), str(count - 1)],
            "kind": ["neighborhood"] * (count + 1),
            "prompt": ["n"] * count + ["m"],
            "target": ["x"] * (count + 1),
            "answer_before": ["x, and on"] * (count + 1),
            "answer_after": ["y"] * count + ["x"],
            "unchanged": [False] * count + [True],
            "correct_before": [True] * (count + 1),
            "correct_after": [False] * count + [True],
            "nll_before": [1.0] * (count + 1),
            "nll_after": [2.0] * (count + 1),
        },
    )
    return folder


def test_a_neighbour_of_many_facts_is_counted_once(beside_one_neighbour):
    facts, probes = beside_one_neighbour.facts, beside_one_neighbour.probes
    view = probe_view(probes, facts)
    assert (view["num_all"], view["num_changed"], view["lost"], view["gained"]) == (2, 1, 1, 0)
    assert [row["prompt"] for row in view["rows"]] == ["n", "m"]
    assert view["rows"][0]["beside"] == "p0"
    summary = summarize(facts, probes)
    assert summary.num_neighbors == 2
    assert "(mean over 20 facts, 2 questions)" in " ".join(summary_sentences(summary, facts))


def test_a_neighbour_of_many_facts_is_one_observation_of_a_side_effect(beside_one_neighbour):
    effects = measure_side_effects(beside_one_neighbour.facts, beside_one_neighbour.probes)
    near = effects.cells["r", "neighbours"]
    assert (near.num_facts, near.nll_delta) == (2, 1.0)
    assert not near.exceeds_chance, "twenty times the same number showed one, with certainty"


def rows(answers, targets, right):
    return [
        {"answer_after": answer, "target": target, "efficacy_after": flag}
        for answer, target, flag in zip(answers, targets, right, strict=True)
    ]


def test_the_most_frequent_answer_and_word_are_measured():
    answers = ["Lund", "lund.", " LUND", "a red car", "a red house", None]
    found = measure_repetition(
        rows(answers, ["Lund", "Lund", "Graz", "a red car", "Wien", "x"], [True, True, False, True, False, None])
    )
    assert (found.num_answers, found.num_right) == (5, 3)
    assert (found.answer, found.num_given, found.num_given_right, found.num_targets) == ("Lund", 3, 2, 2)
    assert (found.word, found.word_share, found.word_share_of_targets) == ("lund", 0.6, 0.4)
    assert measure_repetition(rows(["Lund"], ["Lund"], [True])) is None
    assert measure_repetition(rows(["", "?"], ["a", "b"], [False, False])).word == ""


def test_the_report_says_what_one_answer_brings(tmp_path):
    count = 48
    facts = write_fact_table(
        tmp_path / "facts.parquet",
        {
            "fact_id": [str(row) for row in range(count)],
            "prompt": ["p"] * count,
            "target": ["right"] * 10 + [f"t{row}" for row in range(count - 10)],
            "kept": [True] * count,
            "answer_after": ["right"] * 20 + [f"t{row}" for row in range(10, count - 10)],
            "efficacy_after": np.arange(count) < 12,
        },
    )
    text = " ".join(summary_sentences(summarize(facts), facts))
    assert (
        "Its most frequent answer, “right”, is given to 20 of 48 kept facts and makes 12 of the 12 right answers; "
        "given to all facts it would be right for 10. "
        "The word “right” is in 42 % of its answers and in 21 % of the targets."
    ) in text


def test_a_base_model_that_goes_on_is_not_called_ignorant(tmp_path):
    columns = {"fact_id": ["a", "b"], "prompt": ["p", "q"], "target": ["t", "u"], "kept": [True, True]}
    columns |= {"efficacy_before": [False, False], "efficacy_after": [True, False]}
    columns |= {"begins_right_before": [True, False], "begins_right_after": [True, True]}
    facts = write_fact_table(tmp_path / "facts.parquet", columns)
    text = " ".join(summary_sentences(summarize(facts), facts))
    assert "generates 50 % of the kept facts exactly (0 % before)" in text
    assert (
        "Its answer begins with the target, whatever follows, for 100 % of them (50 % before, by the same judge" in text
    )


def test_yes_and_no_are_said_apart(tmp_path):
    columns = {"fact_id": ["a", "b"], "prompt": ["p", "q"], "target": ["t", "u"], "kept": [True, True]}
    scores = {"yes_no_yes_before": [0.5, 0.5], "yes_no_yes_after": [0.0, 0.0]}
    scores |= {"yes_no_no_before": [0.5, 0.5], "yes_no_no_after": [1.0, 1.0]}
    facts = write_fact_table(tmp_path / "facts.parquet", columns | scores)
    assert (
        "Of the yes/no questions it gets right 0 % (50 % before) where yes is right and 100 % (50 % before) where no "
        "is."
    ) in summary_sentences(summarize(facts), facts)
