"""`compare`: two runs over the same facts, by hand and on the command line."""

import csv
import io

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder, compare_runs, write_fact_table
from lit_semantic_peft.reports.compare_many import compare_many, many_table
from lit_semantic_peft.reports.records import Estimate, RetentionRecord, Seconds, Summary
from rich.console import Console

SIZE = 40


def write_run(name, **changed):
    columns = {
        "fact_id": [f"f{row}" for row in range(SIZE)],
        "prompt": [f"p{row}" for row in range(SIZE)],
        "target": [f"t{row}" for row in range(SIZE)],
        "kept": [True] * SIZE,
        "efficacy_after": [True] * 20 + [False] * 20,
        "answer_after": [f"t{row}" if row < 20 else "?" for row in range(SIZE)],
        "generalization_after": [0.5] * SIZE,
        "locality_kl": [0.25] * 4 + [None] * (SIZE - 4),
    }
    write_fact_table(RunFolder(name).paths.facts, columns | changed)
    return name


@pytest.fixture
def runs():
    better = [row != 3 and row < 30 for row in range(SIZE)]  # ten gained, one lost
    return write_run("a"), write_run("b", efficacy_after=better)


def test_differences_are_paired_and_flips_are_named(runs):
    found = compare_runs(*runs)
    efficacy = next(one for one in found.scores if one.name == "efficacy")
    assert (efficacy.first, efficacy.second) == (0.5, 29 / 40)
    assert efficacy.difference.mean == pytest.approx(9 / 40)
    assert 0 < efficacy.difference.low < 9 / 40 < efficacy.difference.high
    assert [row["fact_id"] for row in found.lost] == ["f3"]
    assert [row["fact_id"] for row in found.gained] == [f"f{row}" for row in range(20, 30)]
    # Paired: equal numbers differ by nothing, whatever their spread, and only measured facts count.
    kl = next(one for one in found.scores if one.name == "locality_kl")
    assert (kl.difference.mean, kl.difference.low, kl.difference.high, kl.difference.num_facts) == (0, 0, 0, 4)
    assert {one.name for one in found.scores} == {"efficacy", "generalization", "locality_kl"}


def test_facts_pair_by_id_not_by_row(runs):
    order = np.random.default_rng(0).permutation(SIZE)
    table = RunFolder("b").facts.take(order)
    pq.write_table(table, RunFolder("b").paths.facts)
    assert [row["fact_id"] for row in compare_runs(*runs).lost] == ["f3"]


def test_the_command_prints_and_writes(runs, capsys):
    assert main(["compare", *runs, "--output", "flips.csv", "--show", "2"]) == 0
    output = capsys.readouterr().out
    assert "+22.5 points" in output
    assert "Facts gained: 10" in output
    assert "f3: p3 t3 | 't3' -> 't3'" in output
    assert "f21" in output
    assert "f22" not in output
    rows = pyarrow.csv.read_csv("flips.csv").to_pylist()
    assert [row["fact_id"] for row in rows if row["flipped"] == "lost"] == ["f3"]
    assert main(["compare", *runs, "--output", "flips.parquet"]) == 0
    assert pq.read_table("flips.parquet").num_rows == SIZE


def test_only_facts_that_both_trained(runs, capsys):
    write_run("c", kept=[row > 9 for row in range(SIZE)])
    assert main(["compare", "a", "c"]) == 0
    assert "trained in one of the runs only, so their scores compare unlike things: 10" in capsys.readouterr().out
    assert main(["compare", "a", "c", "--only_kept"]) == 0
    assert "trained in one of the runs only, left out: 10" in capsys.readouterr().out
    assert len(compare_runs("a", "c", only_kept=True).facts) == 30


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (None, "expected a run folder, but there is none"),
        ({"fact_id": [f"g{row}" for row in range(SIZE)]}, "no fact in common by `fact_id`: 'f0', 'f1', 'f2', …"),
        ({"target": ["other"] * SIZE}, "fact 'f0' is another fact in the two runs: `target` is 't0' in `a`"),
        ({"efficacy_after": [None] * SIZE}, "its facts were not asked"),
    ],
)
def test_what_cannot_be_compared_is_said(runs, changed, message, capsys):
    name = "nowhere" if changed is None else write_run("c", **changed)
    assert main(["compare", "a", name, "--output", "x.csv"]) == 2
    assert message in capsys.readouterr().err
    assert not RunFolder("x.csv").path.exists()


def test_a_wrong_output_or_number_is_refused_before_anything_is_read(capsys):
    assert main(["compare", "nowhere", "nowhere", "--output", "x.txt"]) == 2
    assert "`--output` must end in .csv or .parquet, got 'x.txt'" in capsys.readouterr().err
    assert main(["compare", "nowhere", "nowhere", "--show", "-1"]) == 2
    assert "`--show` must be at least 0, got -1" in capsys.readouterr().err


def test_the_help_explains(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--help"])
    assert ended.value.code == 0
    assert "covers the choice of facts, not seeds" in " ".join(capsys.readouterr().out.split())


def test_no_text_of_the_csv_is_a_formula_and_numbers_stay(runs, capsys):
    answers = ["=1+1", "+1", "-2", "@a", "\t=x", " =y", "a=b", "'=z", *["Lund"] * (SIZE - 8)]
    write_run("d", answer_after=answers)
    assert main(["compare", "a", "d", "--output", "x.csv"]) == 0, capsys.readouterr().err
    with open("x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer_second"] for row in rows[:8]] == [
        "'=1+1", "'+1", "'-2", "'@a", "'\t=x", "' =y", "a=b", "'=z"
    ]  # fmt: skip
    assert {row["efficacy_first"] for row in rows} <= {"0", "1"}


def with_costs(name, rise, known, seconds):
    retention = RetentionRecord(nll_before=3.0, nll_after=3.0 + rise, known=Estimate(known, known, known, 64))
    summary = Summary(
        num_facts=SIZE, num_kept=SIZE, num_dropped=0, retention=retention, seconds=Seconds(training=seconds)
    )
    RunFolder(name).write_summary(summary)
    RunFolder(name).paths.config.write_text(f"trainer: {{max_steps: {int(seconds)}}}\nseed_everything: 0\n")


def test_more_than_two_stand_side_by_side(runs, capsys):
    write_run("c", locality_kl=[0.1] * SIZE, efficacy_after=[None] * 10 + [True] * 30)
    for name, cost in (("a", (1.5, 0.5, 60)), ("b", (0.25, 0.75, 90)), ("c", (0.5, 0.75, 30))):
        with_costs(name, *cost)
    numbers = {one.label: one for one in compare_many(["a", "b", "c"])}
    efficacy = numbers["efficacy"]
    assert efficacy.num_facts == 30  # the facts that all three measured
    assert efficacy.values == (10 / 30, 20 / 30, 1.0)
    assert efficacy.best == (False, False, True)
    assert numbers["locality_kl"].best == (False, False, True)  # less is better
    assert numbers["generalization"].best == (False, False, False)  # all alike
    assert numbers["unrelated text, nats per token, after − before"].best == (False, True, False)
    assert numbers["facts known before that still are"].best == (False, True, True)
    assert numbers["seconds in all"].best == (False, False, True)
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    console.print(many_table([efficacy], ["a", "b", "c"]))
    assert "\x1b[1m100.0 %" in console.file.getvalue()
    assert main(["compare", "a", "b", "c"]) == 0
    output = capsys.readouterr().out
    assert "trainer.max_steps: 60 | 90 | 30" in output
    assert "seed_everything" not in output
    assert main(["compare", "a", "b"]) == 0
    output = capsys.readouterr().out
    assert "+1.500" in output
    assert "trainer.max_steps: 60 -> 90" in output


def test_more_than_two_are_of_the_same_facts_and_write_nothing(runs, capsys):
    write_run("c", target=["other"] * SIZE)
    assert main(["compare", "a", "b", "c"]) == 2
    assert "fact 'f0' is another fact in the two runs: `target` is 't0' in `a`" in capsys.readouterr().err
    assert main(["compare", "a", "b", "a", "--output", "x.csv"]) == 2
    assert "`--output` holds the facts of two runs, got 3 runs" in capsys.readouterr().err
    write_run("d", kept=[False] * SIZE)
    assert main(["compare", "a", "b", "d", "--only_kept"]) == 2
    assert "have no fact in common" in capsys.readouterr().err
