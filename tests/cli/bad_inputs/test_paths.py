"""Paths that are absent, files instead of folders, too long, circular, or may not be read or written."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.bad_inputs import GOOD, BadInput, Place

LONG = "n" * 300
"""A name that no file system takes."""


def loop(_: Place) -> None:
    """Two links that lead to each other."""
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")


def unreadable(name: str, content: str = "") -> Callable[[Place], None]:
    def make(place: Place) -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
        place.forbid(name)

    return make


def unwritable(folder: str) -> Callable[[Place], None]:
    return lambda place: place.forbid(folder, 0o500)


PLACES = [  # of a path, what is called with it
    ("facts", "fit --data.facts={}"),
    ("a base model", "fit --model.base_model={}"),
    ("a configuration", "fit --config={}"),
    ("a checkpoint", "fit --ckpt_path={}"),
    ("a run folder", "fit --trainer.default_root_dir={}"),
    ("an adapter", "predict --model.adapter={}"),
    ("a run to score for", "score --run={}"),
    ("an output of score", "score --output={}"),
    ("a source of convert", "convert {} out.jsonl"),
    ("an output of convert", "convert facts.jsonl {}.jsonl"),
    ("a run to export", "export {} out"),
    ("a run to report", "report {}"),
    ("a run to compare", "compare {} runs/b"),
]
CASES = [
    *(BadInput(f"{name}, too long", call.format(LONG), ["nnn"]) for name, call in PLACES),
    *(BadInput(f"{name}, below a file", call.format("facts.jsonl/x"), ["facts.jsonl"]) for name, call in PLACES),
    *(
        BadInput(f"{name}, in a circle", call.format("one"), ["one"], make=loop)
        for name, call in PLACES
        if name != "an output of convert"
    ),
    BadInput(
        "facts that may not be read", "fit --data.facts=mine.jsonl", ["mine.jsonl"], make=unreadable("mine.jsonl")
    ),
    BadInput(
        "a configuration that may not be read", "fit --config=mine.yaml", ["mine.yaml"], make=unreadable("mine.yaml")
    ),
    BadInput(
        "a folder of facts that may not be read",
        "fit --data.facts=mine",
        ["mine"],
        make=lambda place: place.forbid("mine"),
    ),
    BadInput(
        "a checkpoint that may not be read", "fit --ckpt_path=mine.ckpt", ["mine.ckpt"], make=unreadable("mine.ckpt")
    ),
    BadInput(
        "an adapter that may not be read",
        "predict --model.adapter=mine",
        ["mine"],
        make=unreadable("mine/adapter_config.json"),
    ),
    BadInput(
        "a run folder that may not be written",
        "fit --trainer.default_root_dir=mine",
        ["mine cannot be written", "Permission denied"],
        make=unwritable("mine"),
    ),
    BadInput(
        "a run folder that may not be made",
        "fit --trainer.default_root_dir=mine/run",
        ["mine/run", "Permission denied"],
        make=unwritable("mine"),
    ),
    BadInput(
        "an output of score that may not be made", "score --output=mine/out", ["mine/out"], make=unwritable("mine")
    ),
    BadInput(
        "an output of convert that may not be made",
        "convert facts.jsonl mine/out.jsonl",
        ["mine/out.jsonl", "Permission denied"],
        make=unwritable("mine"),
    ),
    BadInput("facts that are not there", "fit --data.facts=nothing.jsonl", ["nothing.jsonl", "world"]),
    BadInput("a checkpoint that is not there", "fit --ckpt_path=no.ckpt", ["`ckpt_path` 'no.ckpt'"]),
    BadInput(
        "a checkpoint folder of another tool",
        "fit --ckpt_path=checkpoint-500",
        ["`ckpt_path` 'checkpoint-500' is a folder, as other tools write"],
        {"checkpoint-500/trainer_state.json": "{}"},
    ),
    *(
        BadInput(
            f"{command} with last where there is none",
            f"{command} --ckpt_path=last",
            ["`ckpt_path` is `last`, but there is no runs/bad/checkpoints/last.ckpt"],
        )
        for command in ("fit", "test", "validate", "predict")
    ),
    BadInput(
        "a run folder that exists",
        "fit",
        ["runs/bad exists already", "--ckpt_path last"],
        {"runs/bad/notes.txt": "mine"},
    ),
    BadInput("a run folder that is a file", "fit --trainer.default_root_dir=taken", ["taken"], {"taken": "mine"}),
    BadInput("an export of nothing", "export nowhere out", ["holds no adapter"]),
    BadInput(
        "a base model without a merge",
        "export adapter out --base_model elsewhere",
        ["`base_model` is only needed with `merge`"],
        {"adapter/adapter_config.json": "{}"},
    ),
    BadInput(
        "the best of a folder that is one adapter",
        "export adapter out --best",
        ["`best` (`--best`) chooses between a run's adapters"],
        {"adapter/adapter_config.json": "{}"},
    ),
    BadInput("a report of nothing", "report nowhere", ["expected a run folder"]),
    BadInput("a comparison with nothing", "compare nowhere elsewhere", ["expected a run folder"]),
    BadInput("a base model that is not there", "fit --model.base_model=nobody/nothing", ["nobody/nothing", "smollm2"]),
    BadInput(
        "facts that are a folder of nothing", "fit --data.facts=empty", ["empty"], make=lambda _: Path("empty").mkdir()
    ),
    BadInput("converted onto an own file", "convert world facts.jsonl", ["facts.jsonl exists already"]),
    BadInput("converted into another form", "convert facts.jsonl out.txt", ["`OUT`", ".jsonl.gz"]),
    BadInput(
        "a truncated archive",
        "fit --data.facts=bad.json.gz",
        ["bad.json.gz", "gzip"],
        {"bad.json.gz": gzip.compress(json.dumps([GOOD] * 50).encode())[:60]},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_paths(case, refused):
    refused(case)
