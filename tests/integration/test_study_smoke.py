"""The study's smallest setting, on the real model: that it runs, goes on where it was, and makes its page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def study(command: str, folder: Path, *more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.study", command, "--setting", "smoke", "--results", str(folder), *more],
        cwd=ROOT,
        env={**os.environ, "LIT_SEMANTIC_PEFT_CACHE": str(folder.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def finished(folder: Path) -> list[Path]:
    results = sorted(folder.glob("primary/*.json"))
    assert {json.loads(path.read_text(encoding="utf-8"))["status"] for path in results} == {"done"}
    return results


@pytest.mark.long
def test_it_begins_on_the_real_model(tmp_path):
    """What fits into a minute: the runs that choose a learning rate, or some of them."""
    assert "3 missing" in study("list", tmp_path / "results"), "and the facts are chosen and scored"
    said = study("run", tmp_path / "results", "--minutes", "1")
    assert finished(tmp_path / "results")
    assert "run the same command again" in said


@pytest.mark.long
def test_all_of_it(tmp_path):
    study("run", tmp_path / "results")
    assert len(finished(tmp_path / "results")) == 15
    study("table", tmp_path / "results")
    page = (tmp_path / "results" / "RESULTS.md").read_text(encoding="utf-8")
    assert "15 of 15 runs of the setting `smoke` are done" in page
    for letter in "abcdegh":
        assert "Not answered yet" not in page.split(f"**({letter})")[1].split("**(")[0]
        assert (tmp_path / "results" / "plots" / f"{letter}.png").is_file()
