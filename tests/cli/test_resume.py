"""A run that was cut off anywhere and goes on is the run that was not, to the last bit; another one is refused."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder

from fixtures.bad_inputs import contents
from fixtures.facts import write_facts

SETTINGS = [
    "--trainer.max_epochs=2",
    "--recipe=plain",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.accumulate_grad_batches=2",
    "--data.batches.micro_batch_size=2",
    "--data.evaluation={probes: [], retention: false}",
    "--checkpoint.every_n_steps=1",
    "--interference.num_facts=4",
    "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Remoteness, init_args: {gamma: 8}}",
    # With dropout the run depends on the random numbers too.
    "--model.peft_config={class_path: peft.LoraConfig, init_args: "
    "{r: 4, lora_dropout: 0.2, target_modules: all-linear}}",
]


class CutOffAt(Callback):
    """Ends the run before a micro-batch, counted from 0 over all epochs."""

    def __init__(self, micro_batch: int) -> None:
        self.left = micro_batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.left == 0:
            raise RuntimeError("cut off")
        self.left -= 1


class CtrlC(Callback):
    """What happens when the user has seen enough of the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


class DiesInTest(Callback):
    """The evaluation after the training fails."""

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        raise RuntimeError("out of memory")


@pytest.fixture
def fit(tiny_model, facts_file, monkeypatch):
    """Runs `fit` in the folder runs/NAME and returns its status."""
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def run(name: str, *arguments: str, command: str = "fit") -> int:
        cache = f"--data.cache_dir=cache/{name.rstrip('0123456789')}"
        base = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", cache]
        return main([command, *base, *SETTINGS, f"--trainer.default_root_dir=runs/{name}", *arguments])

    return run


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    """A folder with the run `run`, which `of_a_run` copies."""
    folder = tmp_path_factory.mktemp("trained")
    facts = write_facts(folder / "facts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lit-semantic-peft"])
        base = [f"--model.base_model={tiny_model}", f"--data.facts={facts}", "--data.cache_dir=cache/run"]
        assert main(["fit", *base, *SETTINGS, "--trainer.default_root_dir=runs/run"]) == 0
    return folder


@pytest.fixture
def of_a_run(trained, fit):
    """`fit`, where the run `run` is there."""
    for name in ("runs", "cache"):
        shutil.copytree(trained / name, name)
    return fit


def test_cut_off_anywhere(fit):
    """6 micro-batches and 3 optimizer steps an epoch; cut off within a step, between two, and before any."""
    assert fit("whole") == 0
    whole = RunFolder("runs/whole")
    for micro_batch in (0, 3, 4, 6, 9):
        name = f"cut{micro_batch}"
        cut = f"{{class_path: cli.test_resume.CutOffAt, init_args: {{micro_batch: {micro_batch}}}}}"
        with pytest.raises(RuntimeError, match="cut off"):
            fit(name, f"--trainer.callbacks=[{cut}]")
        found = RunFolder(f"runs/{name}")
        assert found.has_checkpoint() == (micro_batch >= 2)
        assert fit(name, "--ckpt_path=last") == 0
        left, right = (one.path / "adapter" / "adapter_model.safetensors" for one in (whole, found))
        assert left.read_bytes() == right.read_bytes(), name
        assert whole.facts.to_pylist() == found.facts.to_pylist(), name
        assert whole.summary.epochs == found.summary.epochs, name


def test_ctrl_c_says_how_to_go_on(fit, capsys):
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert fit("run", "--trainer.callbacks=[{class_path: cli.test_resume.CtrlC}]") == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    said = capsys.readouterr().err
    assert "Interrupted. Go on with `--ckpt_path last`." in said
    assert "Traceback" not in said
    assert not RunFolder("runs/run").paths.report.exists()
    assert fit("run", "--ckpt_path=last") == 0


def test_a_training_whose_evaluation_fails_has_its_report(fit):
    with pytest.raises(RuntimeError, match="out of memory"):
        fit("run", "--trainer.callbacks=[{class_path: cli.test_resume.DiesInTest}]")
    folder = RunFolder("runs/run")
    assert folder.summary.epochs
    assert folder.paths.report.is_file()
    assert folder.facts["efficacy_after"].null_count == len(folder.facts)


def test_another_run_is_refused_with_what_differs(of_a_run, tiny_model, capsys):
    before = contents(Path("runs"))
    other = Path("other")
    shutil.copytree(tiny_model, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.5 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for argument, said in (
        (f"--model.base_model={other}", "`model.base_model`: the checkpoint belongs to"),
        ("--data.num_facts=7", "`data.facts`: 12 facts"),
        ("--model.peft_config.r=8", "`model.peft_config.r`: 4 in the checkpoint, 8 here"),
        ("--data.selection.weighting=lit_semantic_peft.semantics.Uniform", "`data.selection.weighting`: fact"),
        ("--data.batches.micro_batch_size=3", "facts per optimizer step"),
    ):
        capsys.readouterr()
        assert of_a_run("run", "--ckpt_path=last", "--trainer.max_epochs=3", argument) == 2, argument
        message = capsys.readouterr().err
        assert said in message, message
        assert "Traceback" not in message
    assert contents(Path("runs")) == before


def test_an_adapter_of_another_strength_is_not_tested(of_a_run, capsys):
    """Its tensors fit; half of what they do would be measured."""
    before = Path("runs/run/facts.parquet").read_bytes()
    for command in ("test", "validate"):
        capsys.readouterr()
        assert of_a_run("run", "--ckpt_path=last", "--model.peft_config.lora_alpha=2", command=command) == 2
        assert "`model.peft_config.lora_alpha`: 8 in the checkpoint, 2 here" in capsys.readouterr().err
    assert of_a_run("run", "--ckpt_path=last", "--model.peft_config.lora_dropout=0", command="validate") == 0
    assert Path("runs/run/facts.parquet").read_bytes() == before


def test_a_truncated_checkpoint_is_refused_by_name(of_a_run, capsys):
    last = Path("runs/run/checkpoints/last.ckpt")
    torch.load(last, weights_only=True)
    last.write_bytes(last.read_bytes()[:-1000])
    capsys.readouterr()
    assert of_a_run("run", "--ckpt_path=last") == 2
    assert f"`ckpt_path` '{last}' cannot be read" in capsys.readouterr().err
