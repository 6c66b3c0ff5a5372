import io
import json
import re

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports.records import (
    EpochRecord,
    Estimate,
    InterferenceRecord,
    RetentionRecord,
    Seconds,
    Sides,
    Summary,
)
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.sentences import summary_sentences
from lit_semantic_peft.reports.summarize import count_facts, summarize
from lit_semantic_peft.reports.tables import write_fact_table, write_probe_table
from lit_semantic_peft.reports.terminal import terminal_summary
from rich.console import Console


@pytest.fixture
def small(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write_fact_table(
        folder.paths.facts,
        {
            "fact_id": ["a", "b", "c", "d", "r"],
            "prompt": ["p1", "p2", "p3", "p4", "p5"],
            "target": ["t1", "t2", "t3", "t4", "t5"],
            "split": ["inject", "inject", "inject", "inject", "retain"],
            "kept": [True, True, False, False, False],
            "drop_reason": [None, None, "too_far", "too_far", None],
            "efficacy_teacher_forced_before": [False, False, True, None, True],
            "efficacy_teacher_forced_after": [True, True, True, None, True],
            "efficacy_before": [False, False, True, False, True],
            "efficacy_after": [True, False, True, False, True],
            "generalization_before": [0.0, 0.5, 0.25, None, 1.0],
            "generalization_after": [1.0, 0.5, 0.25, None, 1.0],
            "locality": [0.5, 1.0, None, None, 0.0],
            "num_neighbors": [2, 1, None, None, 4],
            "pushed_away": [False, True, True, True, None],
            "net_transfer": [-2.0, 0.5, None, None, None],
            "worst_aggressor": ["b", None, None, None, None],
        },
    )
    write_probe_table(
        folder.paths.probes,
        {
            "fact_id": ["a", "a", "b", "b"],
            "kind": ["neighborhood", "neighborhood", "neighborhood", "paraphrase"],
            "prompt": ["n1", "n2", "n3", "q"],
            "unchanged": [True, False, True, False],
        },
    )
    return folder


def test_counts_are_over_the_facts_offered_and_shares_over_the_measured(small):
    counts = count_facts(small.facts)
    assert (counts.num_facts, counts.num_kept, counts.num_dropped) == (4, 2, 2)
    assert counts.dropped_by_reason == {"too_far": 2}
    generated, forced = counts.score("efficacy"), counts.score("efficacy_teacher_forced")
    assert forced.kept.after.mean == 1.0
    assert generated.kept.after.mean == 0.5
    assert forced.dropped.before == Estimate(1.0, 1.0, 1.0, 1)  # one of the two was measured
    assert generated.dropped.after.mean == 0.5
    assert counts.pushed_away == 0.5


def test_scores_are_over_kept_and_over_dropped_facts(small):
    counts = count_facts(small.facts)
    assert [one.name for one in counts.scores] == [
        "efficacy", "efficacy_teacher_forced", "generalization", "locality"
    ]  # fmt: skip
    one = counts.score("generalization")
    assert one.kept == Sides(before=Estimate(0.25, 0.0, 0.5, 2), after=Estimate(0.75, 0.5, 1.0, 2))
    assert one.dropped == Sides(before=Estimate(0.25, 0.25, 0.25, 1), after=Estimate(0.25, 0.25, 0.25, 1))
    near = counts.score("locality")
    assert (near.kept.before, near.kept.after.mean, near.dropped) == (None, 0.75, Sides())
    assert counts.num_neighbors == 3, "of the kept facts, as their score"
    assert counts.score("portability").kept == Sides()  # not measured


def test_a_summary_survives_its_file(small):
    summary = summarize(
        small.facts,
        name="x",
        epochs=(EpochRecord(0, 4, 1.5, float("nan"), 0.25),),
        interference=(InterferenceRecord(0, 0, 0.1),),
        retention=RetentionRecord(3.0, 3.5, Estimate(0.5, 0.25, 0.75, 24)),
        seconds=Seconds(setup=1.0, training=2.0),
        config={"a": [1, {"b": None}]},
    )
    small.write_summary(summary)
    back = small.summary
    assert back.epochs == (EpochRecord(0, 4, 1.5, None, 0.25),)
    assert back.seconds == Seconds(setup=1.0, training=2.0)
    assert back.scores == summary.scores
    assert back.retention == summary.retention
    written = json.loads(small.paths.summary.read_text())
    assert back.to_json() == {name: value for name, value in written.items() if name != "written_by"}
    assert Summary.from_json({"num_facts": 1, "num_kept": 1, "num_dropped": 0}) == Summary(1, 1, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected an object"),
        ({"num_facts": 1, "num_kept": 1}, "missing field.*num_dropped"),
        ({"num_facts": 1, "num_kept": 1, "num_dropped": 0, "facts": 3}, "unknown field.*facts"),
        ({"num_facts": "1", "num_kept": 1, "num_dropped": 0}, "`summary.num_facts`: expected int, got '1'"),
        ({"num_facts": True, "num_kept": 1, "num_dropped": 0}, "`summary.num_facts`: expected int, got True"),
        ({"num_facts": 1, "num_kept": 1, "num_dropped": 0, "epochs": [{"loss": 1}]}, r"epochs\[0\].*missing.*epoch"),
        ({"num_facts": 1, "num_kept": 1, "num_dropped": 0, "scores": {}}, "`summary.scores`: expected a list"),
        ({"num_facts": 1, "num_kept": 1, "num_dropped": 0, "recall": {}}, "unknown.*recall.*\n.*[Aa]nother version"),
    ],
)
def test_a_wrong_summary_says_where(value, message):
    with pytest.raises(InputError, match=message):
        Summary.from_json(value, "summary")


def test_sentences_say_what_happened_and_no_more(small):
    facts = small.facts
    text = " ".join(summary_sentences(summarize(facts), facts))
    assert "2 of 4 facts were dropped (too far); 2 were kept." in text
    assert "generates 50 % of the kept facts exactly (0 % before)" in text
    assert "pushed the model away from 1 kept fact: its distance grew" in text
    assert "1 of 2 measured facts loses more to the others than it gains from its own gradient" in text
    assert "for example to “p2 t2”" in text
    assert (
        "Beside a kept fact, 75 % of the neighbouring questions kept their answer (mean over 2 facts, 3 questions)"
        in text
    )
    unasked = facts.drop_columns(["locality"]).append_column("locality", [[None] * len(facts)])
    assert "Neighbouring questions were not measured." in summary_sentences(summarize(unasked), unasked)
    for after, said in (
        (3.5, "less likely: its loss went from 3.00 to 3.50"),
        (2.5, "more likely"),
        (3.0, "as likely"),
    ):
        told = summary_sentences(summarize(facts, retention=RetentionRecord(3.0, after)), facts)
        assert said in told[-1]


def test_the_terminal_table_shows_numbers(small):
    console = Console(width=100, record=True, file=io.StringIO())
    retention = RetentionRecord(3.0, 3.5, known=Estimate(0.75, 0.5, 1.0, 16))
    summary = summarize(small.facts, retention=retention)
    console.print(terminal_summary(summary))
    text = console.export_text()
    assert "2 of 4" in text
    assert "2 too far" in text
    assert re.search(r"answers unchanged +│ +│ +75 % ", text)
    assert "75 % (50–100)" in text
    assert "3.500" in text
    assert "conclusions" not in text  # not measured


@pytest.mark.parametrize(
    ("last_epoch", "sentence"),
    [
        (2, "2 dropped facts were brought back and trained from epoch 2 on (epochs count from 0)."),
        (1, "Training ended before epoch 2, in which 2 dropped facts were to come back."),
    ],
)
def test_deferred_facts_are_said_to_have_come_back_only_if_they_have(small, last_epoch, sentence):
    facts = small.facts
    column = facts.schema.get_field_index("trained_from_epoch")
    epochs = tuple(EpochRecord(epoch, 4 * (epoch + 1)) for epoch in range(last_epoch + 1))
    plain = summary_sentences(summarize(facts, epochs=epochs), facts)
    late = facts.set_column(column, "trained_from_epoch", [[0, 0, 2, 2, None]])
    told = summary_sentences(summarize(late, epochs=epochs), late)
    assert told == [plain[0], sentence, *plain[1:]]
    assert summary_sentences(summarize(late), late) == plain, "facts that were only scored"
