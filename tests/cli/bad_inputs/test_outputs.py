"""Files of the user's where a command would write, and files that it reads: neither is replaced."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lit_semantic_peft.reports import build_report

from fixtures.adapters import write_random_adapter
from fixtures.bad_inputs import GOOD, BadInput, Place
from fixtures.run_folder import write_run_folder

MINE = "not written by this package\n"
ONE_FACT = [{"id": "a", "prompt": "The capital of Aro is", "target": "Lund"}]


def runs(_: Place) -> None:
    """Two runs, and a folder with the name of a file."""
    for name in ("a", "b"):
        write_run_folder(Path("runs", name), 8)
    Path("runs/c.csv").mkdir()


def run_with_foreign_report(place: Place) -> None:
    runs(place)
    Path("runs/a/report.html").write_text("<html>mine</html>", encoding="utf-8")


def run_with_foreign_plot(place: Place) -> None:
    runs(place)
    build_report("runs/a")
    for plot in Path("runs/a/plots").iterdir():
        plot.write_bytes(b"\x89PNG mine")


def facts_as_parquet(_: Place) -> None:
    pq.write_table(pa.Table.from_pylist(ONE_FACT), "facts.parquet")


def adapter_with_pipe(place: Place) -> None:
    write_random_adapter(place.model, Path("adapter"))
    os.mkfifo("adapter/pipe")


def adapter_with_link(_: Place) -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}", encoding="utf-8")
    Path("secret.txt").write_text("mine", encoding="utf-8")
    Path("adapter/notes.txt").symlink_to(Path("secret.txt").absolute())


CASES = [
    BadInput(
        "score over its own facts",
        "score --data.facts=facts.parquet --output=.",
        ["facts.parquet would be replaced", "is read"],
        make=facts_as_parquet,
    ),
    BadInput(
        "score over its own facts, found in a folder",
        "score --data.facts=. --output=.",
        ["facts.parquet would be replaced", "is read"],
        make=facts_as_parquet,
    ),
    *(
        BadInput(
            f"score over another's {name}",
            "score --output=out",
            [f"out/{name} exists", "did not write it"],
            {f"out/{name}": MINE},
        )
        for name in ("facts.parquet", "summary.json", "distances.json", "report.html", "interference.safetensors")
    ),
    *(
        BadInput(
            f"score over another's plot of {name}",
            "score --output=out",
            [f"out/plots/{name}.png exists", "did not write it"],
            {f"out/plots/{name}.png": MINE},
        )
        for name in ("distances", "distance_histogram")
    ),
    BadInput(
        "score into a run",
        "score --output=runs/a",
        ["is the folder of a run"],
        {"runs/a/checkpoints/last.ckpt": MINE},
    ),
    BadInput(
        "predict over another's answers",
        "predict --model.adapter=adapter",
        ["predictions.jsonl exists", "did not write it"],
        {"runs/bad/predictions.jsonl": [GOOD], "adapter/adapter_config.json": "{}"},
    ),
    BadInput(
        "predict over its own facts",
        "predict --model.adapter=adapter --data.facts=predictions.jsonl --trainer.default_root_dir=.",
        ["predictions.jsonl would be replaced", "is read"],
        {"predictions.jsonl": [GOOD], "adapter/adapter_config.json": "{}"},
    ),
    *(
        BadInput(
            f"test over another's {name}",
            "test --model.adapter=adapter --trainer.default_root_dir=mine",
            [f"mine/{name} exists", "did not write it"],
            {f"mine/{name}": MINE, "adapter/adapter_config.json": "{}"},
        )
        for name in ("facts.parquet", "probes.parquet", "summary.json", "report.html", "dropped.jsonl", "manifest.json")
    ),
    BadInput(
        "fit into another's folder",
        "fit --trainer.default_root_dir=mine",
        ["mine exists already"],
        {"mine/report.html": MINE},
    ),
    BadInput(
        "compare over a run's table",
        "compare runs/a runs/b --output runs/a/facts.parquet",
        ["facts.parquet exists", "did not write it as comparison"],
        make=runs,
    ),
    *(
        BadInput(
            f"compare over another's {name}",
            f"compare runs/a runs/b --output {name}",
            [f"{name} exists", "did not write it as comparison"],
            {name: MINE},
            make=runs,
        )
        for name in ("table.csv", "table.parquet")
    ),
    BadInput("compare onto a folder", "compare runs/a runs/b --output runs/c.csv", ["c.csv exists"], make=runs),
    BadInput("a report over another's", "report runs/a", ["report.html exists"], make=run_with_foreign_report),
    BadInput("plots over another's", "report runs/a", [".png exists"], make=run_with_foreign_plot),
    BadInput(
        "export onto a file",
        "export adapter mine",
        ["mine exists"],
        {"adapter/adapter_config.json": "{}", "mine": ""},
    ),
    BadInput("export of a link outwards", "export adapter out", ["adapter/notes.txt", "link"], make=adapter_with_link),
    BadInput(
        "export into the adapter itself",
        "export adapter adapter/sub/out",
        ["adapter/sub/out is inside adapter"],
        {"adapter/adapter_config.json": "{}"},
    ),
    BadInput("export of a pipe", "export adapter out", ["adapter/pipe", "named pipe"], make=adapter_with_pipe),
    BadInput("facts of no name", ["fit", "--data.facts="], ["`facts`", "empty"]),
    BadInput("converted from no name", ["convert", "", "out.jsonl"], ["empty"]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs(case, refused):
    refused(case)
