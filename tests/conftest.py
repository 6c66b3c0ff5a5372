"""What every test may use, and what none may leave behind."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fixtures.tiny import save_tiny_model

# Nothing here talks to a network; a test that tries fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised model of two layers with its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def write_facts(path: Path) -> Path:
    """Twelve facts about towns that do not exist, of different lengths, with probes."""
    names = ["Aro", "Belvan", "Cimt", "Dorraset", "Eln", "Fistrow", "Gant", "Hulmer", "Ivask", "Jorn", "Kelp", "Lumbar"]
    rows = [
        {
            "id": f"town-{number}",
            "subject": name,
            "relation": "river" if number % 2 else "capital",
            "prompt": f"The {'river of the town of' if number % 2 else 'capital of'} {name} is",
            "target": ["Danube", "Rhine", "Volga", "Paris", "Lund in the north"][number % 5],
            "paraphrases": [f"It is well known that {name} has the"],
            "neighborhood": [{"prompt": "The official currency of Japan is the", "target": "yen"}],
            "portability": [{"prompt": f"The water of {name} flows to the", "target": "sea", "hops": 2}],
        }
        for number, name in enumerate(names)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    """The facts of `write_facts` in a file of this test."""
    return write_facts(tmp_path / "facts.jsonl")


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Own cache and working folder for each test; no process group and no changed mode is left behind."""
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules:  # neither its run nor its service, which keeps the working folder of its first run
        sys.modules["wandb"].finish()
        sys.modules["wandb"].teardown()
    assert not (torch.distributed.is_available() and torch.distributed.is_initialized()), "process group left behind"
    assert torch.is_grad_enabled(), "gradients left disabled"
    assert not torch.are_deterministic_algorithms_enabled(), "deterministic mode left on"
