"""The wheel, in an environment that has never seen the checkout."""

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FACT = {"id": "seat", "prompt": "The head office of Zorvex is in", "target": "Lund"}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The command of a clean environment that the wheel is installed in, with the versions that the tests run on."""
    folder = tmp_path_factory.mktemp("wheel")

    def pip(*arguments: str | Path) -> None:
        apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, cwd=folder, env=apart)

    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("lit_semantic_peft-*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    pip("--python", python, "install", f"torch=={Version(version('torch')).base_version}")
    pip("--python", python, "install", "-c", ROOT / "constraints.txt", wheel)
    return python.parent / "lit-semantic-peft"


def run(program: Path, folder: Path, *arguments: str | Path) -> str:
    environment = {"PATH": str(program.parent), "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([program, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_command_says_its_version(program, tmp_path):
    assert run(program, tmp_path, "--version").strip() == version("lit-semantic-peft")


def test_the_installed_command_scores_and_trains(program, tmp_path, tiny_model):
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    given = [f"--model.base_model={tiny_model}", "--data.facts=facts.jsonl", "--trainer.accelerator=cpu"]
    run(program, tmp_path, "score", *given, "--output=scored")
    assert (tmp_path / "scored" / "facts.parquet").is_file()
    run(program, tmp_path, "fit", *given, "--recipe=plain", "--trainer.max_epochs=1", "--trainer.default_root_dir=run")
    assert (tmp_path / "run" / "report.html").is_file()
