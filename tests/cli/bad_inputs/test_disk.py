"""A full disk: named with its folder and what is free; nothing is half written, and the cache is done without."""

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.cache import ContentCache

from fixtures.bad_inputs import BadInput, Place
from fixtures.run_folder import write_run_folder


def full(function: str):
    """Makes no temporary file or folder outside the cache, as on a disk without room or inodes."""

    def make(place: Place) -> None:
        real = getattr(tempfile, function)

        def refuse(*arguments, **named):
            if "cache" in str(named.get("dir")):
                return real(*arguments, **named)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(named.get("dir")))

        place.monkeypatch.setattr(tempfile, function, refuse)

    return make


def full_for_torch(place: Place) -> None:
    """As torch reports it: without the operating system's words, after the disk has been filled."""

    def refuse(*arguments, **named):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    place.monkeypatch.setattr(torch, "save", refuse)
    place.monkeypatch.setattr("lit_semantic_peft.files.disk_space", lambda folder: (0, 10))


def runs(_: Place) -> None:
    for name in ("a", "b"):
        write_run_folder(Path("runs", name), 8)


def adapter(_: Place) -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")


def both(*makes):
    return lambda place: [make(place) for make in makes]


QUICK = (
    "--data.evaluation.probes=[] --data.evaluation.retention=false --interference.num_facts=0 --trainer.max_epochs=1"
)
SAID = ["no space left in", "bytes and"]
CASES = [
    BadInput("a conversion", "convert facts.jsonl out/out.jsonl", [*SAID, "out.jsonl"], make=full("mkstemp")),
    BadInput(
        "a comparison",
        "compare runs/a runs/b --output table.csv",
        [*SAID, "table.csv"],
        make=both(runs, full("mkstemp")),
    ),
    BadInput("scores", "score", SAID, make=full("mkstemp")),
    BadInput("a training", f"fit {QUICK}", SAID, make=full("mkstemp")),
    BadInput("a checkpoint", f"fit {QUICK}", [*SAID, "checkpoints"], make=full_for_torch, leaves=["runs/bad"]),
    BadInput("an adapter", f"fit {QUICK}", [*SAID, "adapter"], make=full("mkdtemp"), leaves=["runs/bad"]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_full_disk(case, refused):
    refused(case)


def test_the_cache_is_done_without(tiny_model, facts_file, monkeypatch, caplog, capsys):
    real = tempfile.mkstemp

    def refuse(*arguments, **named):
        if "cache" in str(named.get("dir")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(named.get("dir")))
        return real(*arguments, **named)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    settings = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", "--trainer.accelerator=cpu"]
    assert main(["score", *settings, "--output=scores"]) == 0
    assert Path("scores/report.html").is_file()
    assert "Nothing is kept for later" in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize("spoil", ["file", "below a file"])
def test_a_cache_folder_that_cannot_be_is_done_without(tmp_path, spoil):
    import numpy as np

    (tmp_path / "taken").write_text("mine")
    cache = ContentCache(tmp_path / ("taken" if spoil == "file" else "taken/below"))
    cache.store_array({"a": 1}, np.zeros(2))
    assert cache.load_array({"a": 1}) is None
    assert (tmp_path / "taken").read_text() == "mine"
