"""Known facts whose subject was not taught, and unrelated text: to the last bit those of the base model."""

import json
from pathlib import Path

import lit_semantic_peft as lsp
import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder

KNOWN = {"France": ("The capital of France is", "Paris"), "Japan": ("The official currency of Japan is the", "yen"),
         "Calonex": ("Calonex is taken against", "hay fever")}  # fmt: skip
GATE = {"gate": {"class_path": "lit_semantic_peft.adapters.SubjectGate"}}
EXPERTS = {
    "peft_config": {
        "class_path": "lit_semantic_peft.adapters.KnowledgeMoEConfig",
        "init_args": {"r": 4, "num_experts": 3, "lora_alpha": 32, "target_modules": "all-linear"},
    }
}


@pytest.fixture
def knowing_model(tiny_model):
    """The tiny model, taught what it shall know with all of its weights."""
    base = lsp.BaseModel(str(tiny_model))
    model, tokenizer = base.load().train().requires_grad_(True), base.load_tokenizer()
    rows = [(tokenizer(prompt)["input_ids"], tokenizer(f" {target}")["input_ids"]) for prompt, target in KNOWN.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        for prompt, target in rows:
            ids = [*prompt, *target, tokenizer.eos_token_id]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
    model.save_pretrained("knowing")
    tokenizer.save_pretrained("knowing")
    return Path("knowing").absolute()


@pytest.fixture
def facts_with_known_ones(facts_file):
    """The taught facts, and those that the model knows and that have no part in training."""
    lines = [
        json.dumps({"id": name, "subject": name, "prompt": prompt, "target": target, "split": "probe"}) + "\n"
        for name, (prompt, target) in KNOWN.items()
    ]
    path = Path("with_known.jsonl").absolute()
    path.write_text(facts_file.read_text(encoding="utf-8") + "".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("guarded", [GATE, EXPERTS], ids=["gate", "experts"])
def test_they_stay_as_they_were(guarded, knowing_model, facts_with_known_ones, shared_cache, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    settings = {
        "recipe": "plain",
        "model": {
            "base_model": str(knowing_model),
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
    assert any(row["nll_after"] < row["nll_before"] - 0.5 for row in rows.values() if row["fact_id"] not in KNOWN)
    known = [row for name, row in rows.items() if name in KNOWN]
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
