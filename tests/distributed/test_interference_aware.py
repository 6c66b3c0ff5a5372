"""Training that is aware of interference: two processes that really start give the adapter that one gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import InterferenceMonitor
from lit_semantic_peft.facts.forms import Question, Reversed
from lit_semantic_peft.training import GradientSurgery
from lit_semantic_peft.training.interference_aware import gradient_surgery
from lit_semantic_peft.training.interference_aware.fact_sample import agreed_gradient_matrix
from safetensors.numpy import load_file

from distributed.test_two_processes import EXPERIMENTS, fit
from fixtures.processes import run_group
from fixtures.training import Trajectory, assert_same_trajectory, fit_ramped, with_retained

pytestmark = pytest.mark.distributed


@pytest.fixture
def settings(tiny_model, facts_file) -> list[str]:
    return [
        f"--config={EXPERIMENTS / 'ddp_cpu.yaml'}",
        f"--model.base_model={tiny_model}",
        f"--data.facts={with_retained(facts_file)}",
        "--data.num_facts=null",
        "--trainer.max_epochs=4",
        "--trainer.enable_progress_bar=false",
        "--interference.num_facts=0",
        "--data.evaluation.probes=[]",
        "--data.evaluation.retention=false",
        "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Remoteness, init_args: {gamma: 8}}",
    ]


@pytest.mark.long
def test_two_processes_equal_one(settings):
    """All parts at once; 12 facts in steps of 8, so that there is a partial step too.

    Three retained facts in a step: two on the first rank and one on the second. The second rank's share of a step may
    lack a relation. The weights maximise the mean, which is solved exactly: rounding cannot move them.
    """
    parts = {
        "ConflictAwareBatching": {"threshold": 0.0},
        "InterferenceWeighting": {"objective": "mean", "beta": 0.5, "every_n_steps": 2},
        "GradientSurgery": {"unit_norm": True},
    }
    callbacks = [
        {"class_path": f"lit_semantic_peft.training.{name}", "init_args": arguments}
        for name, arguments in parts.items()
    ]
    sources = [
        {"class_path": "lit_semantic_peft.training.RetainSplit", "init_args": {"weight": 2.0, "batch_size": 3}},
        {"class_path": "lit_semantic_peft.training.OwnSamples", "init_args": {"num_samples": 7, "length": 5}},
    ]
    options = [
        *settings,
        f"--model.retain={json.dumps(sources)}",
        f"--trainer.callbacks={json.dumps(callbacks)}",
    ]
    one_process = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batches.micro_batch_size=8"]
    fit(*options, *one_process, "--trainer.default_root_dir=runs/one")
    fit(*options, "--data.batches.micro_batch_size=4", "--trainer.default_root_dir=runs/two")
    left, right = (load_file(f"runs/{name}/adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert left.keys() == right.keys()
    for key in left:
        assert np.linalg.norm(left[key] - right[key]) <= 1e-3 * np.linalg.norm(left[key]) + 1e-9, key
    columns = Path("runs/two/logs/metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    for name in ("retain_kl", "retain_kl/own_samples", "conflicts_within_steps", "progress_mean", "group_conflicts"):
        assert f"train/{name}" in columns


SAMPLES = {"uneven": [0, 2, 3, 5, 7, 8, 11], "a rank without facts": [4]}


class Matrices(Callback):
    """The matrices of the samples at the end of training."""

    def on_train_end(self, trainer, pl_module):
        self.of = {name: agreed_gradient_matrix(pl_module, rows) for name, rows in SAMPLES.items()}


def _matrices(tiny_model, facts_file, world_size):
    callback, monitor = Matrices(), InterferenceMonitor(num_facts=5, alone_facts=5)
    size = 4 // world_size  # the same optimizer steps, so that the adapter is the same at the end
    trainer = {"devices": world_size, "strategy": "ddp"} if world_size > 1 else {}
    fit_ramped(tiny_model, facts_file, micro_batch_size=size, callbacks=[callback, monitor], trainer=trainer)
    return {**callback.of, "monitor": monitor.latest.compute()["gradient_dot"]}, monitor.alone.compute()["difference"]


def _save_matrices(tiny_model, facts_file, folder):
    found = _matrices(tiny_model, facts_file, world_size=2)
    torch.save((torch.distributed.get_world_size(), *found), f"{folder}/matrices-{torch.distributed.get_rank()}.pt")


def test_ranks_share_a_matrix_and_agree_on_it(tiny_model, facts_file, tmp_path):
    run_group(_save_matrices, 2, tmp_path, tiny_model, facts_file, tmp_path)
    saved = [torch.load(tmp_path / f"matrices-{rank}.pt") for rank in range(2)]
    assert [world_size for world_size, *_ in saved] == [2, 2]
    torch.set_num_threads(1)
    matrices, alone = _matrices(tiny_model, facts_file, world_size=1)
    assert alone.isnan().sum() == 7
    (_, _, alone_0), (_, _, alone_1) = saved
    assert torch.equal(alone_0.nan_to_num(), alone_1.nan_to_num())
    torch.testing.assert_close(alone_0, alone, rtol=1e-3, atol=1e-3, equal_nan=True)
    for name, expected in matrices.items():
        (_, first, _), (_, second, _) = saved
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], first[name].T)
        scale = expected.diagonal().sqrt()
        difference = (first[name] - expected) / scale[:, None] / scale[None, :]
        assert difference.abs().max() <= 1e-4, name


def _surgery(tiny_model, facts_file, folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gradient_surgery, "surgery_coefficients", lambda dot, *_, **__: np.ones(len(dot)))
        run = fit_ramped(
            tiny_model,
            facts_file,
            micro_batch_size=2,
            accumulate=2,
            data={"sources": [Question(0.4), Reversed(0.4)]},
            callbacks=[GradientSurgery()],
            trainer={"devices": 2, "strategy": "ddp"},
        )
    torch.save((run.losses, run.norms, run.adapter), f"{folder}/surgery-{torch.distributed.get_rank()}.pt")


def test_surgery_without_conflict_is_plain_training_of_the_same_forms(tiny_model, facts_file, tmp_path):
    run_group(_surgery, 2, tmp_path, tiny_model, facts_file, tmp_path)
    torch.set_num_threads(1)
    plain = fit_ramped(tiny_model, facts_file, micro_batch_size=8, data={"sources": [Question(0.4), Reversed(0.4)]})
    for rank in range(2):
        assert_same_trajectory(plain, Trajectory(*torch.load(tmp_path / f"surgery-{rank}.pt")))
