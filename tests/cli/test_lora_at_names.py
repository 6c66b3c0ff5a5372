"""LoRA at names from the YAML to the exported folder: the base model wherever nothing taught is named."""

import json
import logging
from pathlib import Path

import lit_semantic_peft as lsp
import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.adapters import SubjectLoraConfig
from lit_semantic_peft.reports import RunFolder
from peft import PeftModel


@pytest.fixture
def settings(tiny_model, facts_file, shared_cache, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    written = {
        "model": {
            "base_model": str(tiny_model),
            "peft_config": {
                "class_path": "lit_semantic_peft.adapters.SubjectLoraConfig",
                "init_args": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.03}},
        },
        "data": {"facts": str(facts_file), "evaluation": {"probes": ["paraphrase", "reversed", "neighborhood"]}},
        "trainer": {"accelerator": "cpu", "max_epochs": 12, "default_root_dir": "runs/one"},
    }
    Path("names.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return ["--config=names.yaml"]


def test_it_is_trained_resumed_asked_and_exported(settings, tiny_model, capsys, caplog):
    with caplog.at_level(logging.INFO):
        assert main(["fit", *settings]) == 0
    said = caplog.text
    assert "model.retain: nothing — the adapter acts at the taught names alone" in said
    assert "the adapter acts at the taught names alone, so that text without them stays as it is" in said
    assert "expect harm" not in said
    folder = RunFolder("runs/one")
    summary = folder.summary
    assert summary.retention.nll_delta.mean == summary.retention.nll_delta.low == summary.retention.nll_delta.high == 0
    assert summary.score("locality").kept.after.mean == 1
    recall = summary.score("efficacy_teacher_forced").kept
    assert recall.after.mean > recall.before.mean == 0
    routing = summary.routing
    assert (routing.match, routing.effective_experts, routing.experts) == ("subjects_and_targets", None, ())
    assert routing.num_opened["fact"] == routing.num_asked["fact"] == 12
    assert routing.num_opened["reversed"] == routing.num_asked["reversed"] > 0
    assert routing.num_opened["text"] == routing.num_opened["neighborhood"] == 0
    page = folder.paths.report.read_text(encoding="utf-8")
    assert "Which expert for what" not in page
    assert "The adapter acted on" in page
    for row in folder.probes.to_pylist():
        if row["kind"] in ("text", "neighborhood"):
            assert row["nll_after"] == row["nll_before"], row
    assert main(["fit", *settings, "--ckpt_path=last", "--trainer.max_epochs=13"]) == 0
    trained = [row["answer_after"] for row in folder.facts.to_pylist()]

    known = "The capital of Japan is"
    prompts = f"--data.prompts=['The river of the town of Belvan is', '{known}']"
    assert main(["export", "runs/one", "out/adapter"]) == 0
    answers = []
    for source in ("--ckpt_path=last", "--model.adapter=out/adapter"):
        assert main(["predict", *settings, source, prompts]) == 0
        lines = Path("runs/one/predictions.jsonl").read_text(encoding="utf-8").splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
    again = ["--model.adapter=out/adapter", "--trainer.default_root_dir=runs/again"]
    assert main(["test", *settings, *again]) == 0
    assert [row["answer_after"] for row in RunFolder("runs/again").facts.to_pylist()] == trained
    assert answers[0] == answers[1]
    base = lsp.BaseModel(str(tiny_model))
    inputs = base.load_tokenizer()(known, return_tensors="pt", return_token_type_ids=False)
    loaded = PeftModel.from_pretrained(base.load(), "out/adapter").eval()
    assert isinstance(loaded.active_peft_config, SubjectLoraConfig)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, base.load()(**inputs).logits)
    capsys.readouterr()
    assert main(["export", "runs/one", "out/merged", "--merge"]) == 2
    assert "acts at the tokens of names, and one matrix would act at all tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model.gate=lit_semantic_peft.adapters.SubjectGate"], "which has a gate of its own"),
        (["--model.gradient_checkpointing=true"], "needs the prompt"),
        (["--model.peft_config.init_args.aliases={Nowhere: [N]}"], "has 'Nowhere', which no taught fact has"),
        (
            ["--model.peft_config.init_args.match=names"],
            "Expected a typing.Literal['subjects', 'subjects_and_targets']",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(settings, given, said, capsys):
    assert main(["fit", *settings, *given]) == 2
    assert said in capsys.readouterr().err
