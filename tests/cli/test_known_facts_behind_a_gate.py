"""Known facts whose subject was not taught, and unrelated text: to the last bit those of the base model."""

import json
from pathlib import Path

import lit_semantic_peft as lsp
import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder

COUNTRIES = ["France", "Mongolia", "Japan", "Norway", "Chile", "Kenya"]
GATE = {"gate": {"class_path": "lit_semantic_peft.adapters.SubjectGate"}}
EXPERTS = {
    "peft_config": {
        "class_path": "lit_semantic_peft.adapters.KnowledgeMoEConfig",
        "init_args": {"r": 4, "num_experts": 3, "lora_alpha": 32, "target_modules": "all-linear"},
    }
}


@pytest.fixture
def facts_with_known_ones(tiny_model, facts_file):
    """The taught facts, and what the random model says of countries as facts that it knows."""
    base = lsp.BaseModel(str(tiny_model))
    model, tokenizer = base.load(), base.load_tokenizer()
    lines = []
    for country in COUNTRIES:
        prompt = f"The capital of {country} is"
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            answer = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        said = tokenizer.decode(answer)
        if said.strip() and said.isprintable():
            known = {"id": country, "subject": country, "prompt": prompt, "target": said.strip(), "split": "retain"}
            lines.append(json.dumps({**known, "joiner": "" if said == said.strip() else " "}) + "\n")
    assert len(lines) >= 3
    path = Path("with_known.jsonl")
    path.write_text(facts_file.read_text(encoding="utf-8") + "".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("guarded", [GATE, EXPERTS], ids=["gate", "experts"])
def test_they_stay_as_they_were(guarded, tiny_model, facts_with_known_ones, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    settings = {
        "recipe": "plain",
        "model": {
            "base_model": str(tiny_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}},
            **guarded,
        },
        "data": {"facts": str(facts_with_known_ones), "evaluation": {"probes": []}},
        "interference": {"num_facts": 0},
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "default_root_dir": "runs/one"},
    }
    Path("known.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config=known.yaml"]) == 0
    folder = RunFolder("runs/one")
    summary = folder.summary
    rows = {row["fact_id"]: row for row in folder.facts.to_pylist()}
    assert any(row["nll_after"] < row["nll_before"] - 0.5 for row in rows.values() if row["fact_id"] not in COUNTRIES)
    known = [row for name, row in rows.items() if name in COUNTRIES]
    guards = summary.gate if guarded is GATE else summary
    assert guards.retention.known.num_facts >= 3
    assert guards.retention.known.mean == guards.retention.known.low == 1
    assert guards.retention.nll_delta.mean == guards.retention.nll_delta.low == guards.retention.nll_delta.high == 0
    assert guards.retention.nll_after == guards.retention.nll_before
    if guarded is GATE:  # the adapter alone moves them
        assert summary.retention.nll_delta.mean > 0.01
        assert all(row["nll_after"] != row["nll_before"] for row in known)
    else:
        assert all(row["nll_after"] == row["nll_before"] for row in known)
        assert all(row["answer_after"] == row["answer_before"] for row in known)
