"""Training that is aware of interference: two processes that really start give the adapter that one gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distributed.test_two_processes import EXPERIMENTS, fit
from fixtures.training import with_retained

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
        "--data.weighting={class_path: lit_semantic_peft.semantics.Remoteness, init_args: {gamma: 8}}",
    ]


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
    options = [
        *settings,
        "--model.retain_weight=2.0",
        "--model.retain_batch_size=3",
        f"--trainer.callbacks={json.dumps(callbacks)}",
    ]
    one_process = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.micro_batch_size=8"]
    fit(*options, *one_process, "--trainer.default_root_dir=runs/one")
    fit(*options, "--data.micro_batch_size=4", "--trainer.default_root_dir=runs/two")
    left, right = (load_file(f"runs/{name}/adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert left.keys() == right.keys()
    for key in left:
        assert np.linalg.norm(left[key] - right[key]) <= 1e-3 * np.linalg.norm(left[key]) + 1e-9, key
    columns = Path("runs/two/logs/metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    for name in ("retain_kl", "conflicts_within_steps", "progress_mean", "group_conflicts"):
        assert f"train/{name}" in columns
