"""Every command and every YAML of the README runs, on small settings."""

import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import lit_semantic_peft.callbacks
import lit_semantic_peft.metrics
import lit_semantic_peft.semantics
import lit_semantic_peft.training
import pytest
import yaml
from lit_semantic_peft.__main__ import main
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    found = [line.split("#")[0].strip() for line in text.splitlines()]
    inline = re.findall(r"`(lit-semantic-peft [^`]+ (?:runs/NAME|--)[^`]*)`", README)
    return sorted({line for line in [*found, *inline] if line.startswith("lit-semantic-peft") and "FILE" not in line})


SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.enable_progress_bar=false",
    "--interference.num_facts=4",
]


@pytest.fixture(autouse=True)
def _in_a_copy(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")


def test_the_readme_has_commands_to_try():
    assert len(commands()) >= 8
    assert len(blocks("yaml")) >= 2


@pytest.mark.parametrize("command", commands())
def test_commands(command, tiny_model, facts_file, capsys):
    arguments = shlex.split(command)[1:]
    small = [*SMALL, f"--model.base_model={tiny_model}"]
    if "runs/NAME" in command:
        run = ["--trainer.default_root_dir=runs/NAME", f"--data.facts={facts_file}"]
        assert main(["fit", *run, *small]) == 0
        small = []
    elif "own_facts" not in command:
        small.append("--data.num_facts=12")
    if arguments[0] == "score":
        small = [one for one in small if "max_epochs" not in one]
    assert main([*arguments, *small]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("text", blocks("yaml"))
def test_configurations(text, tiny_model, facts_file, capsys):
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    arguments = ["--config=recipe.yaml", f"--data.facts={facts_file}", f"--model.base_model={tiny_model}", *SMALL]
    arguments += ["--data.selection.filters=null"] if "KnownFilter" not in text else []
    assert main(["fit", *arguments]) == 0, capsys.readouterr().err


def test_the_three_parts_under_lightnings_own_trainer(tiny_model, facts_file):
    from lit_semantic_peft.callbacks import InterferenceMonitor
    from lit_semantic_peft.reports import RunFolder

    def run_block(text, names):
        for old, new in (("smollm2-135m", tiny_model), ("facts.jsonl", facts_file)):
            assert text.count(old) == 1 + (old == "facts.jsonl" and "lsp.score" in text)
            text = text.replace(old, str(new))
        exec(compile(text.replace("max_epochs=10", "max_epochs=2"), "README.md", "exec"), names)  # our own README

    (text,) = (block for block in blocks("python") if "KnowledgeDataModule" in block)
    names: dict[str, Any] = {}
    run_block(text, names)
    monitor = names["monitor"]
    assert isinstance(monitor, InterferenceMonitor)
    assert [record.epoch for record in monitor.records] == [0, 2]
    run = RunFolder("runs/python")
    assert {row["answer_after"] is None for row in run.facts.to_pylist()} == {False}
    assert run.paths.report.is_file()
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()

    (without_trainer,) = (block for block in blocks("python") if "lsp.score" in block)
    names |= {"peft_model": names["module"].model, "tokenizer": AutoTokenizer.from_pretrained(tiny_model)}
    run_block(without_trainer, names)
    assert len(names["table"]) == len(names["matrix"]) == run.facts.num_rows


def test_early_stopping_by_configuration(tiny_model, facts_file):
    from lit_semantic_peft.reports import RunFolder

    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/nll", "patience": 1, "min_delta": 1e9},
    }
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stopping]}}), encoding="utf-8")
    small = [one for one in SMALL if "max_epochs" not in one]
    arguments = ["--config=stop.yaml", f"--data.facts={facts_file}", f"--model.base_model={tiny_model}", *small]
    assert main(["fit", *arguments, "--trainer.max_epochs=9", "--trainer.default_root_dir=runs/stop"]) == 0
    assert len(RunFolder("runs/stop").summary.epochs) == 2


def test_every_public_class_is_in_the_readme_or_the_docs():
    text = "\n".join([README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))])
    named = set(re.findall(r"\w+", text))
    packages = (lit_semantic_peft.semantics, lit_semantic_peft.training, lit_semantic_peft.callbacks)
    for package in (*packages, lit_semantic_peft.metrics):
        classes = {name for name in package.__all__ if inspect.isclass(getattr(package, name))}
        assert classes
        assert classes <= named, package.__name__
