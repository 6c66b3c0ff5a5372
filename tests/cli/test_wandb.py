"""What a W&B run holds, read back from the file that an offline run leaves."""

import csv
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from lit_semantic_peft.__main__ import main

_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
TEXT_COLUMNS = {"subject", "prompt", "target", "target_true", "answer_before", "answer_after"}
WANDB = ["--trainer.logger=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline=true"]


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):  # the user's own are not for tests
        monkeypatch.setenv(name, str(tmp_path / "wandb_user"))


@pytest.fixture
def settings(tiny_model, facts_file) -> list[str]:
    return [
        f"--model.base_model={tiny_model}",
        f"--data.facts={facts_file}",
        "--data.micro_batch_size=4",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--interference.num_facts=6",
    ]


def fit_with_wandb(settings: list[str], folder: str) -> None:
    """Trains and ends the run, as the end of the process does."""
    import wandb

    try:
        status = main(["fit", *settings, *WANDB, "--trainer.logger.project=x", f"--trainer.default_root_dir={folder}"])
    finally:
        wandb.finish()
        wandb.teardown()
    assert status == 0


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then blocks as in a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        assert bool(parts) == (kind in (_MIDDLE, _LAST))
        parts += body
        at += 7 + length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
        else:
            assert kind in (_FIRST, _MIDDLE)
    assert not parts


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


class OfflineRun:
    """History rows, summary, configuration and files of the one W&B run in a run folder."""

    def __init__(self, folder: str) -> None:
        (self.folder,) = Path(folder, "wandb").glob("offline-run-*")
        (path,) = self.folder.glob("*.wandb")
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.project = None
        self.is_ended = False
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.history.append(items(record.history.item))
            elif kind == "summary":
                self.summary |= items(record.summary.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "run":
                self.project = record.run.project
            elif kind == "exit":
                self.is_ended = record.exit.exit_code == 0

    def course(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of one metric."""
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]

    def metrics(self) -> set[str]:
        """Names of all logged numbers."""
        media = ("facts/", "plots/")
        return {name for row in self.history for name in row if not name.startswith(("_", *media))}

    def logged(self, name: str) -> Path:
        """The file of a table or image."""
        (path,) = [row[f"{name}/path"] for row in self.history if f"{name}/path" in row]
        return self.folder / "files" / path


def csv_course(folder: str, name: str) -> list[tuple[int, float]]:
    with Path(folder, "logs", "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def test_metrics_table_plots_and_configuration_are_logged(settings):
    before = set(Path().iterdir())
    fit_with_wandb(settings, "runs/wandb")
    assert {path.name for path in set(Path().iterdir()) - before} <= {"runs", "cache", "wandb_user"}
    user = [path for path in Path("wandb_user").rglob("*") if path.is_file()]
    assert not [path for path in user if path.suffix in (".wandb", ".parquet", ".png")], user

    run = OfflineRun("runs/wandb")
    assert run.is_ended
    assert run.project == "x"
    # The same run with another logger has the same numbers, and is the same run.
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/csv"]) == 0
    wandb_adapter, csv_adapter = (
        Path(f"runs/{name}/adapter/adapter_model.safetensors").read_bytes() for name in ("wandb", "csv")
    )
    assert wandb_adapter == csv_adapter
    with Path("runs/csv/logs/metrics.csv").open(newline="") as file:
        names = set(csv.DictReader(file).fieldnames or ())
    assert run.metrics() - {"trainer/global_step"} == names - {"step"}  # and with that none for a single fact
    assert {"train/loss", "val/recall", "val/nll", "interference/conflict_rate", "test/recall_generated"} <= names
    assert len(run.course("train/loss")) == 6
    for name in names - {"step"}:
        steps, values = zip(*run.course(name), strict=True)
        expected_steps, expected_values = zip(*csv_course("runs/csv", name), strict=True)
        assert steps == expected_steps, name
        assert values == pytest.approx(expected_values), name

    table = json.loads(run.logged("facts").read_text(encoding="utf-8"))
    expected = pq.read_table("runs/wandb/facts.parquet")
    assert table["columns"] == expected.column_names
    at = table["columns"].index("fact_id")
    by_id = {row[at]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert by_id == {row["fact_id"]: pytest.approx(row) for row in expected.to_pylist()}
    transfer = [row[table["columns"].index("net_transfer")] for row in table["data"]]
    measured = [value for value in transfer if value is not None]
    assert len(measured) == 6
    assert transfer == sorted(measured) + [None] * 6  # those hurt most first

    plots = {path.stem: path for path in Path("runs/wandb/plots").glob("*.png")}
    assert plots.keys() >= {"distance_histogram", "interference", "learning", "recall"}
    for name, path in plots.items():
        assert run.logged(f"plots/{name}").read_bytes() == path.read_bytes()
    assert {"recall_generated", "recall_teacher_forced", "locality", "pushed_away"} <= {
        name.removeprefix("facts/") for name in run.summary
    }

    logged = yaml.safe_load(run.config["config"])
    written = yaml.safe_load(Path("runs/wandb/config.yaml").read_text(encoding="utf-8"))
    assert logged["data"] == written["data"]
    assert logged["data"]["micro_batch_size"] == 4
    assert logged["interference"] == written["interference"]


def test_without_fact_text_none_leaves_the_run_folder(settings, facts_file):
    fit_with_wandb([*settings, "--report.log_fact_text=false"], "runs/private")
    run = OfflineRun("runs/private")
    table = json.loads(run.logged("facts").read_text(encoding="utf-8"))
    expected = pq.read_table("runs/private/facts.parquet").column_names
    assert table["columns"] == [name for name in expected if name not in TEXT_COLUMNS]
    assert len(table["data"]) == 12
    prompts = [json.loads(line)["prompt"].encode() for line in facts_file.read_text(encoding="utf-8").splitlines()]
    for path in (path for root in (run.folder, Path("wandb_user")) for path in root.rglob("*") if path.is_file()):
        assert not any(prompt in path.read_bytes() for prompt in prompts), path


def test_the_table_holds_at_most_so_many_rows(settings):
    fit_with_wandb([*settings, "--report.wandb_rows=5"], "runs/short")
    table = json.loads(OfflineRun("runs/short").logged("facts").read_text(encoding="utf-8"))
    assert len(table["data"]) == 5
    assert all(row[table["columns"].index("net_transfer")] is not None for row in table["data"])


@pytest.mark.parametrize("command", ["score", "fit"])
def test_without_its_logger_wandb_is_not_imported(command, settings):
    own = ["--output=scores"] if command == "score" else ["--trainer.default_root_dir=runs/one"]
    program = (
        "import sys\n"
        "from lit_semantic_peft.__main__ import main\n"
        f"assert main({[command, *settings, *own]!r}) == 0\n"
        "sys.exit('wandb is imported' if 'wandb' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_refused_run_leaves_no_folder_that_blocks_the_next(settings, tmp_path):
    """In a process of its own: W&B writes once more when the process ends."""
    arguments = [one for one in settings if not one.startswith("--data.facts=")]
    folder = tmp_path / "runs" / "refused"
    done = subprocess.run(
        [sys.executable, "-m", "lit_semantic_peft", "fit", *arguments, *WANDB, "--data.facts=missing.jsonl",
         f"--trainer.default_root_dir={folder}"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not folder.exists()
