"""Experts from the YAML to the exported folder: the base model where nothing taught is named."""

import json
from pathlib import Path

import lit_semantic_peft as lsp
import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.adapters import KnowledgeMoEConfig
from lit_semantic_peft.reports import RunFolder
from peft import PeftModel

EXPERTS = {
    "class_path": "lit_semantic_peft.adapters.KnowledgeMoEConfig",
    "init_args": {"r": 4, "num_experts": 3, "lora_alpha": 16, "target_modules": "all-linear"},
}


@pytest.fixture
def settings(tiny_model, facts_file, shared_cache, monkeypatch):
    """A configuration that would damage much, if it acted on all prompts."""
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    written = {
        "recipe": "plain",
        "model": {
            "base_model": str(tiny_model),
            "peft_config": EXPERTS,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}},
        },
        "data": {"facts": str(facts_file), "evaluation": {"probes": ["paraphrase", "reversed", "neighborhood"]}},
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "default_root_dir": "runs/one"},
    }
    Path("experts.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return ["--config=experts.yaml"]


def test_experts_are_trained_resumed_asked_and_exported(settings, tiny_model, capsys):
    assert main(["fit", *settings]) == 0
    folder = RunFolder("runs/one")
    summary = folder.summary
    assert summary.retention.nll_delta.mean == summary.retention.nll_delta.low == summary.retention.nll_delta.high == 0
    assert summary.retention.nll_after == summary.retention.nll_before
    assert summary.score("locality").kept.after.mean == 1
    assert summary.score("efficacy_teacher_forced").kept.after.mean > 0.3
    routing = summary.routing
    assert (routing.match, routing.num_names) == ("subjects", 12)
    assert routing.num_opened["fact"] == routing.num_asked["fact"] == 12
    assert (routing.num_opened["reversed"], routing.num_asked["reversed"]) == (0, 8)
    assert routing.num_opened["text"] == routing.num_opened["neighborhood"] == 0
    layers = {one.layer for one in routing.experts}
    assert len(layers) == 14
    assert len(routing.experts) == 3 * 14
    for layer in layers:
        of_layer = [one for one in routing.experts if one.layer == layer]
        assert sum(one.load for one in of_layer) == pytest.approx(1, abs=1e-5)
        assert sum(one.num_anchors for one in of_layer) == 12
    assert 1 <= routing.effective_experts <= 3
    assert routing.same_experts.num_pairs + routing.other_experts.num_pairs == 12 * 11 / 2
    page = folder.paths.report.read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "Which expert for what" in page
    assert "The adapter acted on" in page
    assert not any(one.anchors for one in summary.without_fact_text().routing.experts)
    for row in folder.probes.to_pylist():
        if row["kind"] in ("text", "neighborhood", "reversed"):
            assert row["nll_after"] == row["nll_before"], row
    assert main(["fit", *settings, "--ckpt_path=last", "--trainer.max_epochs=5"]) == 0
    trained = [row["answer_after"] for row in folder.facts.to_pylist()]

    known = "The capital of Japan is"
    prompts = f"--data.prompts=['The river of the town of Belvan is', '{known}']"
    assert main(["export", "runs/one", "out/adapter"]) == 0
    answers = []
    for source in ("--ckpt_path=last", "--model.adapter=runs/one/adapter", "--model.adapter=out/adapter"):
        assert main(["predict", *settings, source, prompts]) == 0
        lines = Path("runs/one/predictions.jsonl").read_text(encoding="utf-8").splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
        again = [source.replace("=last", "=runs/one/checkpoints/last.ckpt"), "--trainer.default_root_dir=runs/again"]
        assert main(["test", *settings, *again]) == 0
        assert [row["answer_after"] for row in RunFolder("runs/again").facts.to_pylist()] == trained
    assert answers[0] == answers[1] == answers[2]
    base = lsp.BaseModel(str(tiny_model))
    inputs = base.load_tokenizer()(known, return_tensors="pt", return_token_type_ids=False)
    loaded = PeftModel.from_pretrained(base.load(), "out/adapter").eval()
    assert isinstance(loaded.active_peft_config, KnowledgeMoEConfig)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, base.load()(**inputs).logits)
    capsys.readouterr()
    assert main(["export", "runs/one", "out/merged", "--merge"]) == 2
    assert "acts by what a prompt names, which one matrix for all prompts cannot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model.gate=lit_semantic_peft.adapters.SubjectGate"], "which has a gate of its own"),
        (["--model.gradient_checkpointing=true"], "needs the prompt"),
        (["--model.compile=true"], "layers read the prompts of each pass"),
        (["--model.peft_config.init_args.top_k=4"], "`peft_config.top_k` must be between 1 and num_experts=3"),
        (["--model.peft_config.init_args.aliases={Nowhere: [N]}"], "has 'Nowhere', which no taught fact has"),
    ],
)
def test_what_experts_cannot_do_is_refused(settings, given, said, capsys):
    assert main(["fit", *settings, *given]) == 2
    assert said in capsys.readouterr().err
