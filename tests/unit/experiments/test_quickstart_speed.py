"""The time to the first optimizer step, and the parts of a run, are those of the command that runs."""

import json
import time
from pathlib import Path

import lit_semantic_peft.__main__ as program
import pytest
import torch
import yaml
from experiments.benchmarks import quickstart_speed


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def two_steps(monkeypatch):
    """A command that makes two optimizer steps; gives the number that were made."""
    made = []

    def command(arguments):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        for _ in range(2):
            optimizer.step()
            made.append(arguments)
        return 3

    monkeypatch.setattr(program, "main", command)
    return made


def test_the_first_step_is_noted_once_and_the_command_goes_on(two_steps, tmp_path):
    begun = time.time() - 100
    assert quickstart_speed.run(["fit"], tmp_path / "note.json", begun, stops=False) == 3
    assert len(two_steps) == 2
    found = json.loads((tmp_path / "note.json").read_text())
    assert 100 < found["seconds"] < 200
    assert found["processor_seconds"] > 0
    (tmp_path / "note.json").unlink()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    optimizer.step()
    assert not (tmp_path / "note.json").exists()


def test_a_run_can_end_with_its_first_step(two_steps, tmp_path, monkeypatch):
    def end(status):
        raise Ended(status)

    monkeypatch.setattr(quickstart_speed.os, "_exit", end)
    with pytest.raises(Ended, match="0"):
        quickstart_speed.run(["fit"], tmp_path / "note.json", time.time(), stops=True)
    assert not two_steps
    assert (tmp_path / "note.json").is_file()


def test_a_whole_run_gives_its_parts(tiny_model, facts_file, tmp_path, monkeypatch, capsys):
    settings = {
        "recipe": "plain",
        "model": {"base_model": str(tiny_model)},
        "data": {"facts": str(facts_file), "evaluation": {"retention": False}},
        "interference": {"num_facts": 0},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    caches = []

    def here(arguments, note, cache, *, stops):
        caches.append(Path(cache))
        assert quickstart_speed.run(arguments, note, time.time(), stops=stops) == 0

    monkeypatch.setattr(quickstart_speed, "in_process", here)
    quickstart_speed.main(["--config", str(config), "--output", str(tmp_path)])
    result = json.loads((tmp_path / "quickstart_speed.json").read_text(encoding="utf-8"))
    assert caches[0] == caches[1]
    assert [row["cache"] for row in result["runs"]] == ["empty", "filled"]
    for row in result["runs"]:
        assert set(quickstart_speed.PARTS) <= set(row["parts"])
        assert row["first_step"]["seconds"] > 0
        assert row["parts"]["training"] > 0
        assert row["parts"]["evaluation"] > 0
    assert "cache" in capsys.readouterr().out
