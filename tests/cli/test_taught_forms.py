"""A run whose facts are taught in several forms, from the YAML to the summary."""

import json
from pathlib import Path

import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder

from fixtures.facts import write_facts

RECIPE = """
data:
  forms:
    from_paraphrases: 1
    sources:
      - {class_path: Given, init_args: {share: 0.3}}
      - {class_path: Question, init_args: {share: 0.2}}
      - {class_path: Reversed, init_args: {share: 0.2}}
trainer:
  callbacks:
    - {class_path: StopWhenRecalled, init_args: {threshold: 1.0, max_stale: 1}}
"""


@pytest.fixture
def facts():
    """Towns with two paraphrases and a question."""
    path = write_facts(Path("facts.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["paraphrases"].append(f"Everybody says that {row['subject']} has the")
        row["question"] = f"What does {row['subject']} have?"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_taught_is_said_and_not_asked(tiny_model, facts, shared_cache):
    Path("forms.yaml").write_text(RECIPE)
    arguments = [f"--model.base_model={tiny_model}", f"--data.facts={facts}", "--trainer.default_root_dir=run"]
    quick = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config=forms.yaml", *arguments, *quick]) == 0
    folder = RunFolder("run")
    forms = folder.summary.forms
    assert forms.taught == {"given": 12, "question": 12, "reversed": forms.taught["reversed"]}
    assert (forms.num_with_stopping, forms.num_without_stopping) == (12, 0)
    rows = {row["fact_id"]: row for row in folder.facts.to_pylist()}
    assert rows["town-0"]["taught_forms"][:2] == ["It is well known that Aro has the", "Q: What does Aro have?\nA:"]
    asked = [(row["fact_id"], row["kind"], row["prompt"]) for row in folder.probes.to_pylist()]
    assert ("town-0", "paraphrase", "Everybody says that Aro has the") in asked
    assert ("town-0", "question", "Question: What does Aro have? Answer:") in asked
    assert not {(one, prompt) for one, _, prompt in asked} & {
        (one, prompt) for one, row in rows.items() for prompt in row["taught_forms"]
    }
    assert folder.summary.score("generalization_question").kept.after is not None
    page = folder.paths.report.read_text()
    assert "given (12 facts), question (12 facts)" in page
    assert "a form of their own: 12 facts; their taught prompt: 0" in page
