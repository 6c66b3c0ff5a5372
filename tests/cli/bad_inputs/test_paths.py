"""Paths that are absent, files instead of folders, too long, circular, or may not be read or written."""

import gzip
import json
from pathlib import Path

import pytest

from fixtures.bad_inputs import GOOD, BadInput

CASES = [
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
        "export nowhere out --base_model elsewhere",
        ["`base_model` is only needed with `merge`"],
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
