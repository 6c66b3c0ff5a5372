"""A run with a gate: the scores with and without it, and the gate beside the adapter from `fit` to `predict`."""

import json
from pathlib import Path

import lit_semantic_peft as lsp
import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.models.gated import read_gate
from lit_semantic_peft.reports import RunFolder
from peft import PeftModel

GATE = {"class_path": "lit_semantic_peft.adapters.SubjectGate"}


@pytest.fixture
def settings(tiny_model, facts_file, shared_cache, monkeypatch):
    """A configuration that damages: at this rate the tiny model forgets whatever it said."""
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    written = {
        "recipe": "plain",
        "model": {
            "base_model": str(tiny_model),
            "gate": GATE,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}},
        },
        "data": {"facts": str(facts_file), "evaluation": {"probes": ["paraphrase", "reversed", "neighborhood"]}},
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "default_root_dir": "runs/one"},
    }
    Path("gate.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return ["--config=gate.yaml"]


def test_a_gated_run_keeps_what_it_did_not_teach(settings, tiny_model, capsys):
    assert main(["fit", *settings]) == 0
    assert "nats per token, ungated" in capsys.readouterr().out
    folder = RunFolder("runs/one")
    summary = folder.summary
    gate = summary.gate
    # Nothing that names no taught subject has moved, though without the gate it has.
    assert gate.retention.nll_delta.mean == gate.retention.nll_delta.low == gate.retention.nll_delta.high == 0
    assert gate.retention.nll_after == gate.retention.nll_before == summary.retention.nll_before
    assert summary.retention.nll_delta.mean > 0.01
    assert gate.score("locality").kept.after.mean == 1
    # What was taught is recalled as without the gate.
    for name in ("efficacy", "efficacy_teacher_forced", "generalization"):
        assert gate.score(name).kept.after == summary.score(name).kept.after, name
    assert gate.num_opened["fact"] == gate.num_asked["fact"] == 12
    assert gate.num_opened["paraphrase"] == gate.num_asked["paraphrase"] == 12
    assert gate.num_opened["neighborhood"] == gate.num_opened["text"] == 0
    # Reversed questions name the target: they are lost, and the report says so.
    assert (gate.num_opened["reversed"], gate.num_asked["reversed"]) == (0, 8)
    page = folder.paths.report.read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "After, without the gate" in page
    assert "Beside a kept fact, 100 % of the neighbouring questions kept their answer" in page  # as it is used
    assert "nats per token before, " in page
    assert "after. Through the gate." in page
    assert "8 of 8 reversed questions name the target" in page

    # The checkpoint, the exported adapter and its copy have the gate.
    known = "The capital of Japan is"
    prompts = f"--data.prompts=['The river of the town of Belvan is', '{known}']"
    base = lsp.BaseModel(str(tiny_model))
    assert main(["export", "runs/one", "out/adapter"]) == 0
    answers = []
    for source in ("--ckpt_path=last", "--model.adapter=runs/one/adapter", "--model.adapter=out/adapter"):
        assert main(["predict", *settings, source, prompts]) == 0
        lines = Path("runs/one/predictions.jsonl").read_text(encoding="utf-8").splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
    assert answers[0] == answers[1] == answers[2]
    inputs = base.load_tokenizer()(known, return_tensors="pt", return_token_type_ids=False)
    gated = lsp.load_gated(base, "out/adapter")
    plain = PeftModel.from_pretrained(base.load(), "out/adapter").eval()  # as who does not know of the gate loads it
    with torch.no_grad():
        assert torch.equal(gated(**inputs).logits, base.load()(**inputs).logits)
        assert not torch.allclose(plain(**inputs).logits, base.load()(**inputs).logits, atol=0.1)
    again = ["--model.adapter=out/adapter", "--trainer.default_root_dir=runs/again"]
    assert main(["test", *settings, *again]) == 0
    assert RunFolder("runs/again").summary.gate == gate
    capsys.readouterr()
    assert main(["export", "runs/one", "out/merged", "--merge"]) == 2
    assert "has a gate" in capsys.readouterr().err


def test_targets_open_the_gate_for_reversed_questions(settings):
    both = ["--model.gate.init_args.match=subjects_and_targets", "--trainer.max_epochs=1"]
    assert main(["fit", *settings, *both, "--data.evaluation.retention=false"]) == 0
    gate = RunFolder("runs/one").summary.gate
    assert gate.num_opened["reversed"] == gate.num_asked["reversed"] == 8
    assert "Danube" in read_gate("runs/one/adapter").names
