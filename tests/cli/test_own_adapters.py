"""Adapters that peft does not have, from the YAML to the exported folder."""

import json
from pathlib import Path

import pytest
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.adapters import FLoRAConfig
from lit_semantic_peft.reports import RunFolder
from peft import LoraConfig, PeftConfig

FLORA = {
    "class_path": "lit_semantic_peft.adapters.FLoRAConfig",
    "init_args": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
}


@pytest.fixture
def fit(tiny_model, facts_file, shared_cache, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    settings = {
        "recipe": "plain",
        "model": {"base_model": str(tiny_model), "peft_config": FLORA},
        "data": {"facts": str(facts_file), "evaluation": {"probes": [], "retention": False}},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "default_root_dir": "runs/one"},
    }
    Path("own.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config=own.yaml"]) == 0


def test_flora_is_trained_resumed_asked_and_exported_as_lora(fit, capsys):
    folder = RunFolder("runs/one")
    assert isinstance(PeftConfig.from_pretrained(folder.paths.adapter), FLoRAConfig)
    assert main(["fit", "--config=own.yaml", "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0
    trained = [row["answer_after"] for row in folder.facts.to_pylist()]
    assert main(["export", "runs/one", "out/lora", "--as_lora"]) == 0
    config = PeftConfig.from_pretrained("out/lora")
    assert type(config) is LoraConfig
    assert (config.r, config.lora_alpha) == (3, 6)
    for adapter in ("runs/one/adapter", "out/lora"):
        again = [f"--model.adapter={adapter}", "--trainer.default_root_dir=runs/again"]
        assert main(["test", "--config=own.yaml", *again]) == 0
        assert [row["answer_after"] for row in RunFolder("runs/again").facts.to_pylist()] == trained
    assert json.loads(Path("out/lora/lit_semantic_peft.json").read_text())["base_model"]
    capsys.readouterr()
    assert main(["export", "out/lora", "out/again", "--as_lora"]) == 2
    assert "of type LORA has no plain LoRA" in capsys.readouterr().err
    assert main(["export", "runs/one", "out/both", "--as_lora", "--merge"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert not Path("out/again").exists()
    assert not Path("out/both").exists()
