"""Published benchmarks as users name them: converted, trained on as they are, and refused with a clear message."""

import json
import sys
from pathlib import Path

import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.facts import FORMATS, read_facts
from lit_semantic_peft.reports import RunFolder

TOWNS = ["Aro", "Belvan", "Cimt", "Dorraset", "Eln", "Fistrow"]


@pytest.fixture(autouse=True)
def _own_arguments(shared_cache, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])


@pytest.fixture
def counterfact(tmp_path) -> Path:
    """Six records in the form of CounterFact; the third repeats the prompt of the second with another answer."""
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "The capital of {} is",
                "relation_id": "P36",
                "target_new": {"str": ["Lund", "Paris", "Rome"][number % 3], "id": "Q1"},
                "target_true": {"str": "Oslo", "id": "Q2"},
                "subject": "Belvan" if number == 2 else name,
            },
            "paraphrase_prompts": [f"The seat of the government of {name} is"],
            "neighborhood_prompts": ["The capital of Norway is"],
            "generation_prompts": [f"In {name} one eats"],
        }
        for number, name in enumerate(TOWNS)
    ]
    path = tmp_path / "multi_counterfact.json"
    path.write_text(json.dumps(records))
    return path


def test_convert_says_what_was_left_out_and_why(counterfact, capsys):
    assert main(["convert", str(counterfact), "facts.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Read as CounterFact: 6 records",
        "Left out:",
        f"  record (records: 1, first: {counterfact}:record 3): another answer to the prompt of an earlier record",
        f"  generation_prompts (records: 6, first: {counterfact}:record 1): openings for free text, which has no "
        "answer to compare with",
        *(
            f"  requested_rewrite.{name}.id (records: 6, first: {counterfact}:record 1): a fact has no field for it"
            for name in ("target_new", "target_true")
        ),
        f"Written: {Path('facts.jsonl').absolute()} (facts: 5)",
    ]
    assert read_facts("facts.jsonl").facts == read_facts(str(counterfact)).facts


def test_convert_joins_columns_and_leaves_out_bad_records(capsys):
    records = [
        {"question": "Who led it?", "answer": "Ann", "context": "In 1999 the club was led by Ann."},
        {"question": "Who led it?", "answer": "Ann", "context": "In 2009 the team was led by Ann.", "topic": "x"},
        {"question": "Who led it?", "answer": 7, "context": "In 2019 nobody was asked."},
    ]
    Path("set.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = ["convert", "set.jsonl", "facts.jsonl", "--columns", "prompt={context} {question}"]
    assert main([*arguments, "--columns", "target=answer"]) == 2
    assert "set.jsonl, line 3: field `target`: expected text, got the number 7" in capsys.readouterr().err
    assert not Path("facts.jsonl").exists()
    assert main([*arguments, "--columns", "target=answer", "--skip_bad"]) == 0
    said = capsys.readouterr()
    assert said.out == f"Written: {Path('facts.jsonl').absolute()} (facts: 2)\n"
    assert "unknown field `topic`, left out" in said.err
    assert "1 problem, its record left out:\nset.jsonl, line 3: field `target`" in said.err
    assert [fact.prompt for fact in read_facts("facts.jsonl").facts] == [
        f"{record['context']} Who led it?" for record in records[:2]
    ]


@pytest.mark.parametrize("command", ["convert", "fit", "score"])
@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": 0.5, "answers": ["Ida"]}, ["record 1: field `question`: expected text, got the number 0.5"]),
        ({"directive": "Say", "output": "x"}, [*(f"`{name}`" for name in FORMATS), "fields `directive`, `output`"]),
    ],
)
def test_what_cannot_be_read_is_refused_without_leaving_anything(command, record, said, tiny_model, capsys):
    Path("set.json").write_text(json.dumps([record]))
    arguments = ["set.json", "out.jsonl"]
    if command != "convert":
        where = {"fit": "--trainer.default_root_dir=out", "score": "--output=out"}[command]
        arguments = [f"--model.base_model={tiny_model}", "--data.facts=set.json", "--trainer.accelerator=cpu", where]
    assert main([command, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(one in error for one in ("set.json", *said))
    assert "Traceback" not in error
    assert not any(Path(name).exists() for name in ("out", "out.jsonl"))


def test_a_published_file_is_trained_on_as_it_is(tiny_model, counterfact, capsys):
    settings = [f"--model.base_model={tiny_model}", f"--data.facts={counterfact}", "--trainer.accelerator=cpu"]
    run = [*settings, "--trainer.default_root_dir=runs/one", "--trainer.max_epochs=1", "--recipe=plain"]
    assert main(["fit", *run, "--trainer.enable_progress_bar=false"]) == 0, capsys.readouterr().err
    log = capsys.readouterr().err
    assert "CounterFact, 6 records; left out: record (1: another answer to the prompt of an earlier record)" in log
    rows = RunFolder("runs/one").facts.to_pylist()
    assert [row["fact_id"] for row in rows] == [f"counterfact-{number}" for number in (0, 1, 3, 4, 5)]
    assert main(["validate", *run, "--ckpt_path=last"]) == 0, capsys.readouterr().err
    assert main(["score", *settings, "--output=scores"]) == 0, capsys.readouterr().err
    assert "Contradictions (same prompt, different targets): 1" in capsys.readouterr().out
