"""What a run is said to have cost."""

import io
import re
from dataclasses import replace

import pyarrow as pa
import pytest
from lit_semantic_peft.reports.html import build_report
from lit_semantic_peft.reports.records import (
    EpochRecord,
    Estimate,
    GateRecord,
    Repetition,
    RetentionRecord,
    ScoreRecord,
    Sides,
    Summary,
)
from lit_semantic_peft.reports.summarize import summarize
from lit_semantic_peft.reports.terminal import terminal_summary
from lit_semantic_peft.reports.verdict import NO_DAMAGE, Thresholds, judged, verdict
from rich.console import Console


def estimate(mean, num_facts=40):
    return Estimate(mean, mean, mean, num_facts)


def after(name, mean):
    return ScoreRecord(name, kept=Sides(after=estimate(mean)))


def repetition(**changes):
    numbers = {
        "num_given": 10,
        "num_answers": 40,
        "num_targets": 9,
        "num_given_right": 9,
        "num_right": 35,
        "word": "yen",
        "word_share": 0.2,
        "word_share_of_targets": 0.2,
    }
    return Repetition(**{"answer": "yen", **numbers, **changes})


HARMLESS = Summary(
    num_facts=40,
    num_kept=40,
    num_dropped=0,
    retention=RetentionRecord(nll_before=3.0, nll_after=3.05, known=estimate(0.9)),
    scores=(after("efficacy", 0.9), after("generalization", 0.7), after("locality", 0.8)),
    epochs=(EpochRecord(epoch=1, global_step=12),),
    repetition=repetition(),
)
CASES = {
    "known": (
        {"retention": RetentionRecord(known=estimate(0.25, 64))},
        "48 of 64 facts that the base model knew are lost (75 %). To keep more of them, add `KnownFacts` to",
    ),
    "unrelated": (
        {"retention": RetentionRecord(nll_before=3.0, nll_after=4.5)},
        "Unrelated text moved: its loss rose by 1.50 nats per token, from 3.00 to 4.50.",
    ),
    "neighbours": ({"scores": (after("locality", 0.4),)}, "60 % of the neighbouring questions get another answer"),
    "recall": (
        {"scores": (after("efficacy", 0.25),)},
        "Only 25 % of the kept facts are recalled after 12 optimizer steps: train longer (`trainer.max_steps`).",
    ),
    "no recall": (
        {"scores": (after("efficacy", 0.0),)},
        "None of the kept facts are recalled after 12 optimizer steps: train longer (`trainer.max_steps`).",
    ),
    "gap": (
        {"scores": (after("efficacy", 0.95), after("generalization", 0.5))},
        "More facts are recalled by their own prompts (95 %) than in other words (50 %)",
    ),
    "majority": (
        {"repetition": repetition(num_given=30)},
        "30 of 40 facts get the same answer, which is right for 9: train longer",
    ),
}


DAMAGE = tuple(CASES[name][1] for name in ("known", "unrelated", "neighbours"))


def shown(summary):
    console = Console(width=200, file=io.StringIO(), force_terminal=True)
    console.print(terminal_summary(summary))
    return console.file.getvalue()


def test_a_run_within_the_thresholds_has_no_warning():
    assert verdict(HARMLESS) == []
    assert "No damage beyond the thresholds was measured." in shown(HARMLESS)


@pytest.mark.parametrize(("changes", "begin"), CASES.values(), ids=CASES)
def test_each_damage_is_named_with_what_helps(changes, begin):
    line, *more = verdict(replace(HARMLESS, **changes))
    assert line.startswith(begin)
    is_damage = line.startswith(DAMAGE)
    assert ["`--recipe gated`" in one for one in more] == [True] * is_damage
    text = shown(replace(HARMLESS, **changes))
    assert "\x1b[33m" in text  # yellow
    assert text.index("What to look at") < text.index("facts kept")


def test_a_gated_run_is_judged_through_its_gate():
    """What the gate protects is named as what is lost without it, and no gate is recommended."""
    ruined = {"retention": RetentionRecord(nll_before=3.0, nll_after=4.5), "scores": (after("efficacy", 0.9),)}
    gate = GateRecord("subjects", 4, {}, {}, (after("efficacy", 0.9),), RetentionRecord(nll_before=3.0, nll_after=3.0))
    assert verdict(replace(HARMLESS, **ruined, gate=gate)) == [
        "Without its gate, as plain peft loads the adapter: unrelated text moved: its loss rose by 1.50 nats per "
        "token, from 3.00 to 4.50."
    ]


def test_what_a_gate_keeps_shut_is_no_lack_of_training():
    shut = GateRecord("subjects", 4, {}, {}, (after("efficacy", 0.9), after("generalization", 0.2)))
    (line,) = verdict(replace(HARMLESS, gate=shut))
    assert line.startswith("The gate stays shut where the adapter knows the answer: paraphrases 70 % without the gate,")
    assert "20 % through it. It opens for more names with `model.gate.aliases`" in line


def test_thresholds_can_be_set():
    assert verdict(HARMLESS, Thresholds(known=0.05)) != []
    changes, _ = CASES["known"]
    assert verdict(replace(HARMLESS, **changes), Thresholds(known=0.8)) == []


def test_what_was_not_measured_is_not_judged():
    nothing = Summary(num_facts=4, num_kept=4, num_dropped=0)
    assert verdict(nothing) == []
    assert "thresholds" not in shown(nothing)


@pytest.mark.parametrize("known", [0.25, 1.0])
def test_summary_and_report_say_it_too(run_folder, known):
    retention = RetentionRecord(known=estimate(known, 64))
    summary = summarize(run_folder.facts, run_folder.probes, retention=retention)
    run_folder.write_summary(summary)
    assert run_folder.summary.verdict == tuple(verdict(summary))
    assert ("48 of 64 facts" in str(run_folder.summary.verdict)) == (known < 1)
    page = build_report(run_folder).read_text(encoding="utf-8")
    said = verdict(summary)[0] if known < 1 else verdict(summary)
    for sentence in [said] if known < 1 else said or [NO_DAMAGE]:
        with_code = re.sub("`(.*?)`", r"<code>\1</code>", sentence)
        assert page.index(with_code) < page.index('class="tiles"')


OTHERS = [{"class_path": "lit_semantic_peft.training.OwnSamples"}]
HELD = [*OTHERS, {"class_path": "lit_semantic_peft.training.retain.retain_split.RetainSplit", "init_args": {}}]


@pytest.mark.parametrize(
    ("config", "is_said"),
    [
        ({"model": {"retain": None}}, True),
        ({"model": {"retain": OTHERS}}, True),
        ({"model": {"class_path": "SemanticPeftModule", "init_args": {"retain": []}}}, True),
        ({"model": {"retain": HELD}}, False),
        ({"model": {}}, False),  # not known
        ({}, False),
    ],
)
def test_facts_that_must_not_change_are_held_or_missed(run_folder, config, is_said):
    facts = run_folder.facts
    at = facts.column_names.index("split")
    splits = ["retain", "retain", *facts.column("split").to_pylist()[2:]]
    marked = facts.set_column(at, "split", pa.array(splits))
    summary = summarize(marked, config=config)
    assert summary.num_retain == 2
    said = [line for line in verdict(summary) if "split: retain" in line]
    assert said == (
        ["2 facts must not change (`split: retain`), but nothing in training kept them: add `RetainSplit` to "
         "`model.retain`."] if is_said else []
    )  # fmt: skip
    assert not [line for line in verdict(summarize(facts, config=config)) if "split: retain" in line]
    assert Summary.from_json(summary.to_json()) == summary


def test_nothing_is_judged_where_nothing_was_measured(run_folder):
    nothing = Summary(num_facts=1, num_kept=1, num_dropped=0)
    assert judged(nothing) is None
    assert judged(HARMLESS) == ()
