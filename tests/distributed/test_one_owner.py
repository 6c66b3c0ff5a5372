"""Two trainings started at the same moment in one folder: one trains, the other is refused and changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lit_semantic_peft.__main__ import main

from fixtures.processes import join, start_processes, write_to_files

QUIET = ["--data.evaluation.probes=[]", "--data.evaluation.retention=false", "--interference.num_facts=0"]


def fit(tiny_model, facts_file, *more):
    return [
        *("fit", *QUIET, "--trainer.max_epochs=2"),
        *(f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.default_root_dir=runs/one", *more),
    ]


def start(tiny_model, facts_file, *more):
    command = [sys.executable, "-m", "lit_semantic_peft", *fit(tiny_model, facts_file, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(rank, arguments, folder):
    errors = write_to_files(folder, str(rank))
    sys.argv = ["lit-semantic-peft", *arguments, f"--data.seed={rank}"]
    status = main(sys.argv[1:])
    sys.stderr.flush()
    (folder / f"{rank}.json").write_text(json.dumps([status, errors.read_text(encoding="utf-8")]), encoding="utf-8")


@pytest.mark.distributed
def test_of_two_that_start_together_one_trains(tiny_model, facts_file, tmp_path):
    processes = start_processes(train, (fit(tiny_model, facts_file), tmp_path), 2)
    join(processes, timeout=300)
    ended = {seed: json.loads((tmp_path / f"{seed}.json").read_text(encoding="utf-8")) for seed in range(2)}
    trained = [seed for seed, (status, _) in ended.items() if status == 0]
    assert sorted(status for status, _ in ended.values()) == [0, 2], ended
    (refused,) = ended.keys() - set(trained)
    assert "in use by process" in ended[refused][1] or "exists already" in ended[refused][1]
    assert "Traceback" not in ended[refused][1]
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
