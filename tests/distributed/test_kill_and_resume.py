"""Runs that are killed at 20 random points and resumed."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lit_semantic_peft.callbacks.adapter_export as adapter_export
import lit_semantic_peft.data.scoring as scoring
import numpy as np
import pytest
import torch
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.callbacks import FactReport
from lit_semantic_peft.callbacks.checkpoint import AtomicCheckpointIO
from lit_semantic_peft.files import LEFTOVER
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.training import SemanticPeftModule
from safetensors.numpy import load_file

pytestmark = [pytest.mark.distributed, pytest.mark.long]

PHASES: dict[str, tuple[object, str]] = {
    "scoring": (scoring, "score_facts"),
    "training": (SemanticPeftModule, "training_step"),
    "checkpoint": (AtomicCheckpointIO, "save_checkpoint"),
    "evaluation": (SemanticPeftModule, "test_step"),
    "export": (adapter_export, "export_adapter"),
    "report": (FactReport, "_write"),
}
KILLS = 20
SETTINGS = [
    "--trainer.max_epochs=3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.batches.micro_batch_size=2",
    "--data.batches.eval_batch_size=4",
    "--checkpoint.every_n_steps=1",
    "--interference.num_facts=5",
    "--interference.every_n_epochs=1",
    "--trainer.accumulate_grad_batches=2",
    "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Remoteness, init_args: {gamma: 8}}",
    # With dropout the run depends on the random numbers too.
    "--model.peft_config={class_path: peft.LoraConfig, init_args: "
    "{r: 4, lora_dropout: 0.2, target_modules: all-linear}}",
]


@dataclass
class Visit:
    """One call of what a phase is known by."""

    phase: str
    seconds: float


def announce(pipe: int) -> None:
    """Has each phase say on the pipe when it begins and ends."""

    def announced(number: int, function: Callable) -> Callable:
        def visit(*arguments, **options):
            os.write(pipe, bytes([2 * number]))
            try:
                return function(*arguments, **options)
            finally:
                os.write(pipe, bytes([2 * number + 1]))

        return visit

    for number, (owner, name) in enumerate(PHASES.values()):
        setattr(owner, name, announced(number, getattr(owner, name)))


def run(arguments: list[str], log: Path, kill: Callable[[str, int], float | None] = lambda *_: None) -> list[Visit]:
    """`fit` in a process of its own, forked so that 20 runs import everything once.

    `kill(phase, number)` says after how many seconds of that phase's number-th visit the process is to be killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        announce(writer)
        sys.argv = ["lit-semantic-peft", *arguments]
        status = 1
        try:
            status = main(arguments)
        finally:
            os._exit(status)
    os.close(writer)
    visits: list[Visit] = []
    begun: dict[str, float] = {}
    killed = False
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while event := pipe.read(1):
            phase = list(PHASES)[event[0] // 2]
            if event[0] % 2:
                visits.append(Visit(phase, time.monotonic() - begun[phase]))
                continue
            begun[phase] = time.monotonic()
            delay = kill(phase, sum(visit.phase == phase for visit in visits))
            if delay is not None and not killed:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                killed = True
    _, status = os.waitpid(child, 0)
    if killed:
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.waitstatus_to_exitcode(status) == 0, log.read_text(encoding="utf-8")[-3000:]
    return visits


def assert_nothing_is_half_written(folder: RunFolder) -> None:
    """Everything that is there under its own name can be read."""
    for path in folder.path.rglob("*"):
        if not path.is_file() or any(part.startswith(LEFTOVER) for part in path.parts):
            continue
        if path.suffix == ".ckpt":
            assert torch.load(path, weights_only=True)["state_dict"]
        elif path.suffix == ".safetensors":
            assert load_file(path)
    if folder.paths.facts.exists():
        assert folder.facts.num_rows == 12
        assert folder.summary.epochs


def assert_same_outcome(expected: RunFolder, found: RunFolder) -> None:
    for name in ("adapter", "adapter_best"):
        left, right = (one.path / name / "adapter_model.safetensors" for one in (expected, found))
        assert left.is_file() == right.is_file()
        if left.is_file():
            assert left.read_bytes() == right.read_bytes(), name
    assert expected.facts.to_pylist() == found.facts.to_pylist()
    assert expected.probes.to_pylist() == found.probes.to_pylist()
    left, right = expected.matrix, found.matrix
    np.testing.assert_equal(dataclasses.astuple(left), dataclasses.astuple(right))
    left, right = expected.summary, found.summary
    assert left.epochs == right.epochs
    assert left.interference == right.interference
    assert not list(found.path.rglob(f"{LEFTOVER}*"))


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_points(tiny_model, facts_file, seed):
    base = ["fit", f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", *SETTINGS]

    def arguments(name: str) -> list[str]:
        return [*base, f"--trainer.default_root_dir=runs/{name}", f"--data.cache_dir=cache/{name}"]

    visits = run(arguments("whole"), Path("whole.txt"))
    whole = RunFolder("runs/whole")
    random_numbers = random.Random(seed)
    report = []
    for number in range(KILLS):
        phase = list(PHASES)[number % len(PHASES)]
        own = [visit.seconds for visit in visits if visit.phase == phase]
        at = random_numbers.randrange(len(own))
        delay = random_numbers.random() * own[at]
        name, log = f"killed{number}", Path(f"killed{number}.txt")
        started = time.monotonic()
        run(arguments(name), log, lambda other, n, p=phase, a=at, d=delay: d if (other, n) == (p, a) else None)
        assert_nothing_is_half_written(RunFolder(f"runs/{name}"))
        has_checkpoint = RunFolder(f"runs/{name}").has_checkpoint()
        run([*arguments(name), "--ckpt_path=last"], log)
        assert_same_outcome(whole, RunFolder(f"runs/{name}"))
        report.append(
            f"{phase} {at + 1} of {len(own)} after {1000 * delay:.1f} ms, "
            f"{'with' if has_checkpoint else 'before the first'} checkpoint: {time.monotonic() - started:.1f} s"
        )
        print(report[-1], flush=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_processes_killed_at_a_random_time(tiny_model, facts_file, seed):
    command = [
        *(sys.executable, "-m", "lit_semantic_peft", "fit", *SETTINGS),
        *(f"--model.base_model={tiny_model}", f"--data.facts={facts_file}"),
        *("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batches.micro_batch_size=1"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def start(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, *more], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)

    assert start("--trainer.default_root_dir=runs/whole").wait(300) == 0
    job = start("--trainer.default_root_dir=runs/killed")
    checkpoint = Path("runs/killed/checkpoints/last.ckpt")
    while not checkpoint.exists():
        assert job.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(seed).random())
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert start("--trainer.default_root_dir=runs/killed", "--ckpt_path=last").wait(300) == 0
    left, right = (load_file(f"runs/{name}/adapter/adapter_model.safetensors") for name in ("whole", "killed"))
    for key in left:
        assert np.linalg.norm(left[key] - right[key]) <= 1e-6 * np.linalg.norm(left[key])
    left, right = (RunFolder(f"runs/{name}").facts.to_pylist() for name in ("whole", "killed"))
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for column, value in one.items():
            expected = pytest.approx(value, rel=1e-5, nan_ok=True) if isinstance(value, float) else value
            assert other[column] == expected, column
