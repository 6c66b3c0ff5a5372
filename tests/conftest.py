"""What every test may use, and what none may leave behind."""

import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fixtures.adapters import write_random_adapter
from fixtures.bad_inputs import BadInput, Place, refuse
from fixtures.facts import write_facts
from fixtures.models import save_tiny_model
from fixtures.plots import blank_plots

# What is imported and collected stays: looking through it for garbage, again and again, takes a fifth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# Nothing here talks to a network; a test that tries fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised model of two layers with its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    """The facts of `write_facts` in a file of this test."""
    return write_facts(tmp_path / "facts.jsonl")


@pytest.fixture
def refused(
    tiny_model: Path, facts_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[BadInput], str]:
    """Makes the call of a case of bad input, checks how it is refused, and returns the message."""
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    return lambda case: refuse(case, Place(tiny_model, monkeypatch), capsys)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can have blocks reserved."""

    def refuse(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)


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


@pytest.fixture(scope="session")
def _cache_of_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shared_cache(_cache_of_many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about the cache: what others that use this have measured need not be measured again."""
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(_cache_of_many))


@pytest.fixture
def own_cache(shared_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For the tests among those with a shared cache that are about it: one that is empty."""
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drawn_plots() -> None:
    """For tests that look at a run's plots: they are drawn."""


@pytest.fixture(autouse=True)
def _blank_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `drawn_plots` the plots of a run are blank: drawing them takes a third of a tiny model's run."""
    if "drawn_plots" not in request.fixturenames:
        blank_plots(monkeypatch)


@pytest.fixture
def make_adapter(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of the tiny model with a name, and the settings of `write_random_adapter`."""
    return lambda name="adapter", **settings: write_random_adapter(tiny_model, tmp_path / name, **settings)
