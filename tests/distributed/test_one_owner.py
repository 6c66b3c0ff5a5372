"""Two trainings started at the same moment in one folder: one trains, the other is refused and changes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

QUIET = ["--data.evaluation.probes=[]", "--data.evaluation.retention=false", "--interference.num_facts=0"]


def start(tiny_model, facts_file, *more):
    command = [
        *(sys.executable, "-m", "lit_semantic_peft", "fit", *QUIET, "--trainer.max_epochs=2"),
        *(f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.default_root_dir=runs/one", *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.distributed
def test_of_two_that_start_together_one_trains(tiny_model, facts_file):
    processes = {seed: start(tiny_model, facts_file, f"--data.seed={seed}") for seed in (1, 2)}
    ended = {seed: (process.communicate(timeout=300)[1], process.returncode) for seed, process in processes.items()}
    trained = [seed for seed, (_, status) in ended.items() if status == 0]
    assert sorted(status for _, status in ended.values()) == [0, 2], ended
    (refused,) = ended.keys() - set(trained)
    assert "in use by process" in ended[refused][0] or "exists already" in ended[refused][0]
    assert "Traceback" not in ended[refused][0]
    config = yaml.safe_load(Path("runs/one/config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["seed"] == trained[0]
    assert Path("runs/one/adapter/adapter_model.safetensors").is_file()
    assert not Path("runs/one/.lock").exists()


@pytest.mark.long
@pytest.mark.parametrize("resumes", [False, True])
def test_beside_a_paused_owner(tiny_model, facts_file, resumes):
    owner = start(tiny_model, facts_file, "--trainer.max_epochs=200")
    try:
        while not Path("runs/one/checkpoints/last.ckpt").exists():
            assert owner.poll() is None
            time.sleep(0.05)
        owner.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
        other = start(tiny_model, facts_file, *(["--ckpt_path=last"] if resumes else []))
        said = other.communicate(timeout=300)[1]
        assert other.returncode == 2
        assert f"in use by process {owner.pid} on " in said
        assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    finally:
        owner.kill()
        owner.communicate()
    resumed = start(tiny_model, facts_file, "--ckpt_path=last", "--trainer.max_epochs=200")
    time.sleep(1)
    resumed.send_signal(signal.SIGINT)
    resumed.communicate(timeout=300)
    assert resumed.returncode in (0, 130)  # the killed owner's lock is gone
