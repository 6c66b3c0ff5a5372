"""`--recipe`: what it fills in, what it leaves as the user set it, and what the run's configuration says."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.cli import recipe
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.gated import read_gate

SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.default_root_dir=run",
    "--data.batches.micro_batch_size=12",
    "--data.evaluation.retention=false",
    "--interference.num_facts=0",
]


HELD = ["OwnSamples", "KnownFacts", "InputDirections"]


@pytest.fixture
def fit(tiny_model, facts_file, shared_cache, monkeypatch, capsys):
    """The configuration that a run writes, and what it says."""
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])

    def run(*arguments):
        files = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}"]
        assert main(["fit", *files, *SMALL, *arguments]) == 0, capsys.readouterr().err
        return yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8")), capsys.readouterr().err

    return run


def test_what_is_open_is_chosen_and_what_is_set_stays(fit):
    config, said = fit("--trainer.max_steps=2", "--data.forms.sources=[]")
    assert config["trainer"]["max_steps"] == 2
    assert config["data"]["forms"]["sources"] == []
    assert config["model"]["optimizer"]["init_args"]["lr"] == 4e-3
    assert [one["class_path"].rpartition(".")[2] for one in config["model"]["retain"]] == HELD
    assert "trainer.max_steps: as you set it" in said
    assert "model.optimizer: AdamW, lr 0.004 — tried in single runs" in said


def test_the_configuration_of_a_run_is_whole(fit):
    """A run from it chooses nothing anew."""
    config, _ = fit("--trainer.max_steps=1")
    assert config["data"]["forms"]["sources"]
    assert main(["fit", "--config=run/config.yaml", "--trainer.default_root_dir=again"]) == 0
    again = yaml.safe_load(Path("again/config.yaml").read_text(encoding="utf-8"))
    again["trainer"]["default_root_dir"] = config["trainer"]["default_root_dir"]
    assert again == config


def test_what_reading_repairs_is_said_once(fit, tmp_path):
    facts = tmp_path / "two.jsonl"
    facts.write_text('{"prompt": "It is ", "target": "one"}\n{"prompt": "It is", "target": "two"}\n')
    _, said = fit("--trainer.max_steps=1", f"--data.facts={facts}", "--data.contradictions=keep", "--refine=0")
    assert said.count("white space at the end of `prompt`, stripped") == 1
    assert said.count("another target, kept") == 1


def test_steps_that_refine_come_after_the_others(fit):
    """The configuration says both, so that a run from it has as many."""
    config, said = fit("--trainer.max_steps=2", "--refine=3")
    assert (config["trainer"]["max_steps"], config["refine"]) == (2, 3)
    assert "Optimizer steps: 5, of at most 12 facts each" in said
    assert "Facts that resist, of 12: 12; 3 more optimizer steps on them" in said
    assert len(json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["epochs"]) == 3


def test_the_last_of_the_steps_that_are_chosen_refine(fit, monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.training.recipe.FEWEST_STEPS", 6)
    monkeypatch.setattr("lit_semantic_peft.training.recipe.PASSES", 1)
    config, said = fit()
    assert (config["trainer"]["max_steps"], config["refine"]) == (5, 1)
    assert "trainer.max_steps: 5 — with those of `refine` 6: no fewer, though 1 steps" in said
    assert "refine: 1 — the last steps teach once more the facts that resist" in said
    assert "Optimizer steps: 6, of at most 12 facts each" in said


def test_the_gated_recipe_brings_a_gate_and_holds_what_is_said_of_targets(fit):
    config, said = fit("--trainer.max_steps=2", "--recipe=gated")
    gate = config["model"]["gate"]
    assert gate["class_path"].endswith(".SubjectGate")
    assert gate["init_args"]["match"] == "subjects_and_targets"
    (held,) = config["model"]["retain"]
    assert held["class_path"].endswith(".SubjectSamples")
    assert held["init_args"]["names"] == "targets"
    assert "model.gate: SubjectGate, subjects_and_targets — prompts that name nothing taught run the base model" in said
    assert (Path("run/adapter") / "subject_gate.json").is_file()


@pytest.mark.parametrize(
    "gate",
    [
        "--model.gate=lit_semantic_peft.adapters.SubjectGate",
        "--model.gate.match=subjects",
        "--model.gate={class_path: lit_semantic_peft.adapters.SubjectGate, init_args: {match: subjects}}",
    ],
)
def test_a_gate_that_is_given_stays_in_the_gated_recipe(gate, fit):
    config, said = fit("--trainer.max_steps=1", "--recipe=gated", gate)
    assert config["model"]["gate"].get("init_args", config["model"]["gate"])["match"] == "subjects"
    assert "model.gate: as you set it (SubjectGate, subjects)" in said
    assert "held still: nothing; the base model answers all prompts that name nothing taught" in said
    assert "expect harm" not in said
    assert config["model"]["retain"] == []  # what other text says of targets does not open it


def test_the_gated_recipe_holds_nothing_where_the_penalty_is_not_possible(fit):
    config, said = fit("--trainer.max_steps=1", "--recipe=gated", "--trainer.precision=16-mixed")
    assert config["model"]["retain"] == []
    assert "model.retain: nothing is held still — not possible with `precision: 16-mixed`" in said


def test_a_gate_that_is_null_is_left_to_the_gated_recipe(fit):
    config, _ = fit("--trainer.max_steps=1", "--recipe=gated", "--model.gate=null")
    assert config["model"]["gate"]["init_args"]["match"] == "subjects_and_targets"


def test_a_gate_of_aliases_alone_opens_for_subjects(fit):
    _, said = fit("--trainer.max_steps=1", "--recipe=gated", "--model.gate.aliases={Belvan: [Old Belvan]}")
    assert "model.gate: as you set it (SubjectGate, subjects)" in said
    assert "Old Belvan" in read_gate("run/adapter").names


def test_a_gated_run_goes_on_and_is_repeated_from_its_configuration(fit):
    config, _ = fit("--trainer.max_steps=2", "--recipe=gated")
    again = ["fit", "--config=run/config.yaml", "--trainer.default_root_dir=again"]
    assert main(again) == 0
    repeated = yaml.safe_load(Path("again/config.yaml").read_text(encoding="utf-8"))
    assert (repeated["model"], repeated["data"]) == (config["model"], config["data"])
    assert read_gate("again/adapter") == read_gate("run/adapter")
    assert main(["fit", "--config=run/config.yaml", "--trainer.max_steps=3", "--ckpt_path=last"]) == 0
    assert read_gate("run/adapter").names == read_gate("again/adapter").names


def test_the_gated_recipe_needs_an_adapter_without_a_gate_of_its_own(tiny_model, facts_file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    files = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", "--recipe=gated", *SMALL]
    assert main(["fit", *files, "--model.peft_config=lit_semantic_peft.adapters.SubjectLoraConfig"]) == 2
    assert (
        "`--recipe gated` puts a gate around the adapter, and SubjectLoraConfig has one of" in capsys.readouterr().err
    )
    assert not Path("run").exists()


def test_the_gated_recipe_needs_subjects(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    facts = tmp_path / "none.jsonl"
    facts.write_text('{"prompt": "It is named", "target": "one"}\n')
    assert main(["fit", f"--model.base_model={tiny_model}", f"--data.facts={facts}", *SMALL, "--recipe=gated"]) == 2
    assert "leave out `--recipe gated` or `model.gate`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"devices": 2}, 2),
        ({"devices": "2"}, 2),  # as the command line gives it
        ({"devices": "auto"}, 1),
        ({"devices": 2, "num_nodes": 3}, 6),
        ({"devices": -1}, 1),  # refused for a CPU, in the words of the run's own trainer
        ({"devices": [0, 1, 2, 3], "accelerator": "cuda"}, 4),
        ({"devices": "0,1", "accelerator": "cuda"}, 2),
        ({"devices": -1, "accelerator": "cuda"}, 8),
        ({"devices": "auto", "accelerator": "auto"}, 8),
    ],
)
def test_processes_are_counted_as_lightning_does(settings, number, monkeypatch, caplog):
    if "accelerator" in settings:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = Namespace({"accelerator": "cpu", "num_nodes": 1} | settings)
    assert recipe.num_processes(trainer) == number
    assert not caplog.messages


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_step_has_the_facts_of_all_processes(devices, tiny_model, facts_file, shared_cache, monkeypatch):
    """Known before anything is launched, from the number that the command line gives."""
    facts_per_step = []

    def chosen(*_, **settings):
        facts_per_step.append(settings["facts_per_step"])
        raise InputError("enough")

    monkeypatch.setattr(recipe, "choose_recipe", chosen)
    files = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}"]
    assert main(["fit", *files, *SMALL, f"--trainer.devices={devices}", "--trainer.accumulate_grad_batches=3"]) == 2
    assert facts_per_step == [12 * 3 * int(devices)]


def test_no_step_refines_where_it_is_not_wanted(fit, monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.training.recipe.FEWEST_STEPS", 6)
    monkeypatch.setattr("lit_semantic_peft.training.recipe.PASSES", 1)
    config, said = fit("--refine=0")
    assert (config["trainer"]["max_steps"], config["refine"]) == (6, 0)
    assert "refine: as you set it" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], None), (["--extrapolate=1"], None), (["--extrapolate=1.5"], 1.5), (["--scale_back=true"], "down")],
)
def test_the_adapter_is_scaled_on_request(options, expected, fit):
    config, said = fit("--trainer.max_steps=2", *options)
    assert config["scale_back"] is (expected == "down")
    assert ("The adapter is scaled to" in said) == (expected is not None)
    scale = json.loads(Path("run/summary.json").read_text(encoding="utf-8")).get("scale")
    assert scale is not None and scale <= 1 if expected == "down" else scale == expected


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("callbacks", [Namespace(class_path="lit_semantic_peft.callbacks.StopWhenRecalled")], True),
        ("callbacks", [Namespace(class_path="lit_semantic_peft.callbacks.AdapterAudit")], False),
        ("limit_train_batches", 1, True),
        ("limit_train_batches", 0.5, True),
        ("limit_train_batches", 1.0, False),
        ("limit_train_batches", None, False),
    ],
)
def test_steps_are_not_divided_where_refine_would_be_refused(setting, value, expected):
    trainer = Namespace(callbacks=None, limit_train_batches=None)
    trainer.update(value, setting)
    assert recipe._decides_its_steps(trainer) == expected


def test_a_number_of_epochs_cannot_be_refined(tiny_model, facts_file, capsys):
    files = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}"]
    assert main(["fit", *files, *SMALL, "--refine=3", "--trainer.max_epochs=2"]) == 2
    assert "set `trainer.max_steps`, and not `trainer.max_epochs`" in capsys.readouterr().err
    assert not Path("run").exists()


def test_plain_holds_nothing_and_teaches_own_prompts(fit):
    config, said = fit("--recipe=plain", "--trainer.max_epochs=1")
    assert config["model"]["retain"] is None
    assert config["data"]["forms"]["sources"] is None
    assert "Recipe" not in said


@pytest.mark.parametrize(
    ("setting", "value", "obstacle"),
    [
        ("trainer.strategy", "fsdp", "a sharded base model"),
        ("trainer.strategy", Namespace(class_path="x.ShardedBaseStrategy"), "a sharded base model"),
        ("trainer.precision", "16-mixed", "`precision: 16-mixed`"),
        ("model.peft_config", Namespace(class_path="peft.LoraConfig", init_args=Namespace(bias="all")), "`bias: all`"),
        ("trainer.precision", "bf16-mixed", None),
    ],
)
def test_nothing_is_held_still_where_it_cannot_be(setting, value, obstacle):
    """With the words of `compatibility`, which would refuse it."""
    config = Namespace(trainer=Namespace(strategy="auto", precision="32-true"), model=Namespace(peft_config=None))
    config.update(value, setting)
    assert recipe._obstacle_to_retaining(config, recipe._peft_config(config.model.peft_config)) == obstacle


def test_an_unknown_recipe_is_refused(capsys):
    assert main(["fit", "--recipe=best"]) == 2
    assert "auto" in capsys.readouterr().err
