"""Other ways to start two processes: spawned, sharded, by torchrun as two machines, by SLURM's script; and deaths."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder
from safetensors.numpy import load_file

from fixtures.facts import write_facts
from fixtures.processes import free_port, run_commands

pytestmark = pytest.mark.distributed

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FIT = [sys.executable, "-m", "lit_semantic_peft", "fit"]
# What srun does: starts the tasks, each told its place, and fails if one fails.
SRUN = """#!/usr/bin/env bash
export SLURM_JOB_ID=1 SLURM_JOB_NAME=test SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=2
export SLURM_NODELIST=localhost SLURM_JOB_NODELIST=localhost SLURM_LOCALID=0
SLURM_PROCID=1 SLURM_NODEID=1 "$@" & other=$!
SLURM_PROCID=0 SLURM_NODEID=0 "$@" || { kill $other; exit 1; }
wait $other
"""


@pytest.fixture(scope="module")
def settings(tiny_model, tmp_path_factory) -> list[str]:
    """Options of every run; the base model is scored once for all of them."""
    folder = tmp_path_factory.mktemp("strategies")
    return [
        f"--model.base_model={tiny_model}",
        f"--data.facts={write_facts(folder / 'facts.jsonl')}",
        f"--data.cache_dir={folder / 'scores'}",
        "--data.selection.filters=null",
        "--data.evaluation={probes: [], retention: false}",
        "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Remoteness, init_args: {gamma: 8}}",
        "--data.batches.micro_batch_size=4",
        "--model.base_model.dtype=float32",
        "--recipe=plain",  # a sharded base model holds nothing still
        # Not AdamW: where a gradient is almost zero, rounding decides the sign of its whole step.
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.3",
        "--model.optimizer.momentum=0.9",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
        "--interference.num_facts=5",
        "--interference.every_n_epochs=1",
    ]


def start(*command: str, **variables: str) -> subprocess.Popen[str]:
    # SLURM and torchrun say more than this in the environment; nothing of the surroundings may stand in for them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **variables}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(*jobs: subprocess.Popen[str]) -> None:
    for job in jobs:
        _, errors = job.communicate(timeout=240)
        assert job.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def one_process(settings, tmp_path_factory) -> RunFolder:
    """What one process gives, with the same facts in each optimizer step."""
    folder = tmp_path_factory.mktemp("one")
    config = f"--config={EXPERIMENTS / 'fsdp.yaml'}"
    alone = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batches.micro_batch_size=8"]
    assert main(["fit", config, *settings, *alone, f"--trainer.default_root_dir={folder / 'run'}"]) == 0
    return RunFolder(folder / "run")


def assert_same(expected: RunFolder, found: RunFolder) -> None:
    left, right = (load_file(one.path / "adapter" / "adapter_model.safetensors") for one in (expected, found))
    assert left.keys() == right.keys()
    for key in left:
        assert np.linalg.norm(left[key] - right[key]) <= 1e-5 * np.linalg.norm(left[key]), key
    assert [epoch.loss for epoch in found.summary.epochs] == pytest.approx(
        [epoch.loss for epoch in expected.summary.epochs], rel=1e-5
    )
    for one, other in zip(expected.facts.to_pylist(), found.facts.to_pylist(), strict=True):
        for column in ("fact_id", "kept", "answer_before", "answer_after", "efficacy_teacher_forced_after"):
            assert one[column] == other[column], column
        assert one["nll_after"] == pytest.approx(other["nll_after"], rel=1e-4)
    matrices = [one.matrix.gradient_dot for one in (expected, found)]
    assert np.linalg.norm(matrices[0] - matrices[1]) <= 1e-4 * np.linalg.norm(matrices[0])


def test_sharded_base_model_is_the_same_run_and_resumes(one_process, settings):
    run = [
        *(f"--config={EXPERIMENTS / 'fsdp.yaml'}", *settings, "--trainer.devices=2"),
        *("--trainer.default_root_dir=runs/fsdp", "--checkpoint.every_n_steps=1", "--checkpoint.save_top_k=-1"),
    ]
    finish(start(*FIT, *run))
    assert_same(one_process, RunFolder("runs/fsdp"))
    whole = load_file("runs/fsdp/adapter/adapter_model.safetensors")
    run_commands(2, ["fit", *run, "--ckpt_path=runs/fsdp/checkpoints/epoch000.ckpt"])
    resumed = load_file("runs/fsdp/adapter/adapter_model.safetensors")
    for key in whole:
        assert np.linalg.norm(whole[key] - resumed[key]) <= 1e-6 * np.linalg.norm(whole[key])
    # Submitted once more, with nothing left to train: the matrix is measured all the same.
    RunFolder("runs/fsdp").paths.interference.unlink()
    run_commands(2, ["fit", *run, "--ckpt_path=last"])
    assert_same(one_process, RunFolder("runs/fsdp"))


@pytest.mark.long
def test_spawned_processes(one_process, settings):
    run = [*FIT, f"--config={EXPERIMENTS / 'fsdp.yaml'}", *settings, "--trainer.devices=2"]
    finish(start(*run, "--trainer.strategy=ddp_spawn", "--trainer.default_root_dir=runs/spawned"))
    assert_same(one_process, RunFolder("runs/spawned"))


@pytest.mark.long
def test_torchrun_on_two_machines(one_process, settings):
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "-m", "lit_semantic_peft", "fit"),
        *(f"--config={EXPERIMENTS / 'fsdp.yaml'}", *settings, "--trainer.num_nodes=2", "--trainer.devices=1"),
        *("--trainer.strategy=ddp", "--trainer.default_root_dir=runs/torchrun"),
    ]
    finish(start(*launch), start(*launch))
    assert_same(one_process, RunFolder("runs/torchrun"))


@pytest.mark.long
def test_slurm_script(one_process, settings):
    Path("bin").mkdir()
    srun = Path("bin/srun")
    srun.write_text(SRUN, encoding="utf-8")
    srun.chmod(0o755)
    python = Path("bin/python")
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    variables = {
        "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}",
        "CONFIG": str(EXPERIMENTS / "fsdp.yaml"),
        "SLURM_JOB_NUM_NODES": "2",
        "MASTER_PORT": str(free_port()),
    }
    script = ["bash", str(EXPERIMENTS / "slurm.sh"), *settings, "--trainer.devices=1", "--trainer.strategy=ddp"]
    finish(start(*script, **variables))
    assert_same(one_process, RunFolder("runs/slurm"))


@pytest.mark.long
@pytest.mark.parametrize("launch", [["--trainer.strategy=ddp"], []], ids=["ddp", "fsdp"])
def test_compiled_layers_in_two_processes(one_process, settings, launch):
    run = [*FIT, f"--config={EXPERIMENTS / 'fsdp.yaml'}", *settings, "--trainer.devices=2", *launch]
    job = start(*run, "--model.compile=true", "--trainer.default_root_dir=runs/compiled", TORCH_LOGS="graph_code")
    _, said = job.communicate(timeout=600)
    assert job.returncode == 0, said[-3000:]
    assert "def forward" in said  # something was compiled
    assert_same(one_process, RunFolder("runs/compiled"))


def test_a_process_that_dies_ends_the_job(settings):
    run = [*FIT, f"--config={EXPERIMENTS / 'ddp_cpu.yaml'}", *settings, "--data.num_facts=null"]
    job = start(*run, "--trainer.max_epochs=1000", "--trainer.default_root_dir=runs/died")
    checkpoint = Path("runs/died/checkpoints/last.ckpt")
    begun = time.monotonic()
    while not checkpoint.exists():
        assert job.poll() is None
        assert time.monotonic() - begun < 240
        time.sleep(0.1)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text(encoding="utf-8").split()
    ranks = [int(child) for child in children if b"lit_semantic_peft" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(ranks) == 1
    os.kill(ranks[0], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    # Whichever notices first: the observer of the child, or the collective that waits for it.
    assert "terminated with code" in errors or "Connection closed by peer" in errors or "Connection reset" in errors
