"""A full disk: named with its folder and what is free; nothing is half written, and the cache is done without."""

import errno
import io
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


def full_for_locks(place: Place) -> None:
    """A file can be made, but nothing be written into it."""

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr(os, "pwrite", refuse)


def full_for_folders(name: str):
    """No folder of this name can be made: a disk without inodes."""
    real = os.mkdir

    def refuse(path, *arguments, **named):
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *arguments, **named)

    return lambda place: place.monkeypatch.setattr(os, "mkdir", refuse)


def full_for_loggers(place: Place) -> None:
    """As the end of a `with open(...)` reports it: without the name of the file."""

    def refuse(logger):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger.save", refuse)


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
    BadInput("the lock of a run", f"fit {QUICK}", [*SAID, "runs/bad cannot be written"], make=full_for_locks),
    BadInput("a run folder", f"fit {QUICK}", [*SAID, "runs/bad"], make=full_for_folders("bad")),
    BadInput("a folder of a run", f"fit {QUICK}", [*SAID, "checkpoints"], make=full_for_folders("checkpoints")),
    BadInput(
        "a log", f"fit {QUICK}", [*SAID, "runs/bad, or what is printed"], make=full_for_loggers, leaves=["runs/bad"]
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


@pytest.mark.parametrize("folder", ["taken", "taken/below", "n" * 300], ids=["file", "below a file", "long name"])
def test_a_cache_folder_that_cannot_be_is_done_without(tmp_path, folder):
    import numpy as np

    (tmp_path / "taken").write_text("mine")
    cache = ContentCache(tmp_path / folder)
    cache.store_array({"a": 1}, np.zeros(2))
    assert cache.load_array({"a": 1}) is None
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 1), (errno.ENOSPC, 2)])
def test_what_cannot_be_printed(monkeypatch, capsys, facts_file, number, status):
    """`| head` reads no more than it wants; a log may be on a full disk. The file is written all the same."""

    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sys.stdout", Closed())
    assert main(["convert", str(facts_file), "out.jsonl"]) == status
    assert Path("out.jsonl").is_file()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert ("error: What is printed cannot be written: No space left on device" in said) == (status == 2)


def test_of_a_training_whose_evaluation_and_report_have_no_room_the_rest_stays(
    tiny_model, facts_file, monkeypatch, capsys
):
    real = tempfile.mkstemp

    def refuse(*arguments, **named):
        if Path("run/summary.json").exists() and "cache" not in str(named.get("dir")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(named.get("dir")))
        return real(*arguments, **named)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    settings = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", "--trainer.accelerator=cpu"]
    assert main(["fit", *settings, *QUICK.split(), "--recipe=plain", "--trainer.default_root_dir=run"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "The report of the training could not be written: run/report.html cannot be written" in said
    assert said.count("error: ") == 1
    for kept in ("adapter/adapter_model.safetensors", "checkpoints/last.ckpt", "summary.json", "facts.parquet"):
        assert Path("run", kept).is_file()
