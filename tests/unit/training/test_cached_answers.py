"""The base model's cached answers, where the facts have other ids or other texts than those that were asked."""

import json

import pytest

from fixtures.training import build


def base_answers(tiny_model, file, cache):
    """Fact, kind of question and the base model's answer, for every question of a test."""
    parts = build(
        tiny_model,
        file,
        data={"cache_dir": str(cache)},
        trainer={"limit_train_batches": 0, "limit_val_batches": 0},
    )
    parts.trainer.test(parts.module, datamodule=parts.data, verbose=False)
    facts = parts.data.prepared.facts
    return [
        (facts[row.question.fact_index].id, row.question.kind, row.question.number, row.before.text, row.before.nll)
        for row in parts.module.evaluation.comparisons
        if 0 <= row.question.fact_index < len(facts)
    ]


@pytest.mark.parametrize("change", ["ids", "prompts", "targets", "aliases"])
def test_they_are_those_of_the_given_facts(tiny_model, facts_file, tmp_path, change):
    records = [json.loads(line) for line in facts_file.read_text().splitlines()]
    others = [dict(record) for record in records]
    for other, last in zip(others, reversed(records), strict=True):
        match change:
            case "ids":
                other["id"] = f"other-{other.get('id', '')}{other['prompt']}"
            case "prompts":
                other["prompt"] = last["prompt"]
            case "targets":
                other["target"] = last["target"]
            case "aliases":
                other["aliases"] = ["Graz"]
    changed = tmp_path / "others.jsonl"
    changed.write_text("".join(json.dumps(other) + "\n" for other in others))
    first = base_answers(tiny_model, facts_file, tmp_path / "cache")
    fresh = base_answers(tiny_model, changed, tmp_path / "fresh")
    assert base_answers(tiny_model, changed, tmp_path / "cache") == fresh
    assert len(fresh) > len(records)
    assert first != fresh
