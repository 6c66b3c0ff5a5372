"""What a W&B run holds, read back from the file that an offline run leaves."""

import csv
import json
import re
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.evaluation import RETENTION, SCORES

_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
TEXT_COLUMNS = {"subject", "prompt", "target", "target_true", "answer_before", "answer_after", "taught_forms"}
NOT_SENT = {"checkpoints", "logs", "wandb"}
WANDB = ["--trainer.logger=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline=true"]


@pytest.fixture(autouse=True)
def _own_arguments(shared_cache, monkeypatch, tmp_path):
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
        "--data.batches.micro_batch_size=4",
        "--trainer.max_epochs=2",
        "--recipe=plain",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--interference.num_facts=6",
        "--interference.final_facts=6",
    ]


@pytest.fixture(autouse=True)
def _no_run_is_left_open():
    yield
    if "wandb" in sys.modules:
        import wandb

        left = wandb.run
        wandb.finish()
        wandb.teardown()  # its service belongs to the folders of one test
        assert left is None, "W&B run left open"


def fit_with_wandb(settings: list[str], folder: str) -> int:
    return main(["fit", *settings, *WANDB, "--trainer.logger.project=x", f"--trainer.default_root_dir={folder}"])


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
        import wandb

        if wandb.run is None:
            wandb.teardown()  # ends the service, which may still be writing the last records of an ended run
        (self.folder,) = Path(folder, "wandb").glob("offline-run-*")
        (path,) = self.folder.glob("*.wandb")
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.artifacts: dict[str, dict[str, Path]] = {}
        self.id = self.project = self.exit_code = None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.history.append(items(record.history.item))
            elif kind == "summary":
                self.summary |= items(record.summary.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "run":
                self.id, self.project = record.run.run_id, record.run.project
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "artifact":
                manifest = record.artifact.manifest
                files = {entry.path: Path(entry.local_path) for entry in manifest.contents}
                self.artifacts[f"{record.artifact.type}:{record.artifact.name}"] = files

    def course(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of one metric."""
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]

    def metrics(self) -> set[str]:
        """Names of all logged numbers."""
        media = ("facts/table", "plots/")
        return {name for row in self.history for name in row if not name.startswith(("_", *media))}

    def all_logged(self, name: str) -> list[tuple[int, Path]]:
        """Steps and files of a table or image."""
        return [
            (row["trainer/global_step"], self.folder / "files" / row[f"{name}/path"])
            for row in self.history
            if f"{name}/path" in row
        ]

    def logged(self, name: str) -> Path:
        """The file of a table or image that was logged once."""
        ((_, path),) = self.all_logged(name)
        return path

    def run_files(self) -> dict[str, Path]:
        """Where each file of the artifact of the run's files was put."""
        return self.artifacts[f"run-folder:run-folder-{self.id}"]


def csv_course(folder: str, name: str) -> list[tuple[int, float]]:
    with Path(folder, "logs", "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def read_table(path: Path) -> list[dict[str, Any]]:
    table = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_metrics_table_plots_and_configuration_are_logged(settings, drawn_plots):
    settings = [*settings, "--report.wandb_all_columns=true"]
    before = set(Path().iterdir())
    assert fit_with_wandb(settings, "runs/wandb") == 0
    assert {path.name for path in set(Path().iterdir()) - before} <= {"runs", "cache", "wandb_user"}

    run = OfflineRun("runs/wandb")
    assert run.exit_code == 0
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
    assert {
        "train/loss",
        "val/efficacy_teacher_forced",
        "val/nll",
        "interference/conflict_rate",
        "test/efficacy",
    } <= names
    assert {"data/facts_kept", "data/facts_dropped"} <= names
    assert csv_course("runs/wandb", "val/nll") == csv_course("runs/csv", "val/nll")  # beside W&B too
    assert len(run.course("train/loss")) == 6
    assert [rate > 0 for _, rate in run.course("train/facts_per_s")] == [True] * 2
    rates = [rate for _, rate in run.course("train/lr")]
    assert len(rates) == 6
    assert 0 < rates[-1] < max(rates) == pytest.approx(2e-3)  # after a cosine
    for name in names - {"step", "train/facts_per_s"}:
        steps, values = zip(*run.course(name), strict=True)
        expected_steps, expected_values = zip(*csv_course("runs/csv", name), strict=True)
        assert steps == expected_steps, name
        assert values == pytest.approx(expected_values), name

    table = json.loads(run.logged("facts/table").read_text(encoding="utf-8"))
    expected = pq.read_table("runs/wandb/facts.parquet")
    assert table["columns"] == expected.column_names
    at = table["columns"].index("fact_id")
    by_id = {row[at]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    rows = expected.to_pylist()
    forms = {row["fact_id"]: row.pop("taught_forms") for row in rows}
    assert {fact_id: row.pop("taught_forms") for fact_id, row in by_id.items()} == forms
    assert by_id == {row["fact_id"]: pytest.approx(row) for row in rows}
    transfer = [row[table["columns"].index("net_transfer")] for row in table["data"]]
    measured = [value for value in transfer if value is not None]
    assert len(measured) == 6
    assert transfer == sorted(measured) + [None] * 6  # those hurt most first

    plots = {path.stem: path for path in Path("runs/wandb/plots").glob("*.png")}
    assert plots.keys() >= {"distance_histogram", "interference", "learning", "recall"}
    for name, path in plots.items():
        assert run.logged(f"plots/{name}").read_bytes() == path.read_bytes()
    outcome = {"efficacy", "efficacy_teacher_forced", "locality", "pushed_away"}
    assert outcome <= {name.removeprefix("test/") for name in run.summary}

    files = run.run_files()
    folder = Path("runs/wandb")
    expected_files = [path for path in folder.rglob("*") if path.is_file() and path.parts[2] not in NOT_SENT]
    assert files.keys() == {path.relative_to(folder).as_posix() for path in expected_files}
    for name, path in files.items():
        assert path.read_bytes() == (folder / name).read_bytes(), name

    logged = yaml.safe_load(run.config["config"])
    written = yaml.safe_load(Path("runs/wandb/config.yaml").read_text(encoding="utf-8"))
    assert logged["data"] == written["data"]
    assert logged["data"]["batches"]["micro_batch_size"] == 4
    assert logged["interference"] == written["interference"]
    assert {"lr", "r", "peft", "weighting", "base_model", "micro_batch_size"} <= run.config.keys()
    assert [run.config[name] for name in ("micro_batch_size", "peft", "r", "lr")] == [4, "LoraConfig", 8, 2e-3]


def test_without_fact_text_none_leaves_the_run_folder(settings, facts_file):
    settings = [*settings, "--report.wandb_all_columns=true"]
    assert fit_with_wandb([*settings, "--report.log_fact_text=false"], "runs/private") == 0
    run = OfflineRun("runs/private")
    table = json.loads(run.logged("facts/table").read_text(encoding="utf-8"))
    expected = [name for name in pq.read_table("runs/private/facts.parquet").column_names if name not in TEXT_COLUMNS]
    assert table["columns"] == expected
    assert len(table["data"]) == 12
    files = run.run_files()
    assert files.keys() >= {"adapter/adapter_model.safetensors", "facts.parquet", "plots/recall.png"}
    assert not list(run.folder.rglob("output.log"))
    assert not files.keys() & {"report.html", "probes.parquet", "dropped.jsonl"}
    assert pq.read_table(files["facts.parquet"], partitioning=None).column_names == expected
    summary = json.loads(files["summary.json"].read_text(encoding="utf-8"))
    assert (summary["num_resisting"], summary["resisting"], summary["repetition"]) == (12, [], None)
    prompts = [json.loads(line)["prompt"].encode() for line in facts_file.read_text(encoding="utf-8").splitlines()]
    sent = [path for root in (run.folder, Path("wandb_user")) for path in root.rglob("*") if path.is_file()]
    assert sent
    for path in [*sent, *files.values()]:
        assert not any(prompt in path.read_bytes() for prompt in prompts), path
    assert any(
        prompts[0] in path.read_bytes() for path in Path("runs/private").glob("*.parquet")
    )  # so it would be found


def test_a_table_of_at_most_so_many_rows_per_evaluation_and_no_files(settings):
    own = ["--report.wandb_rows=5", "--report.wandb_table_every_n_epochs=1", "--report.wandb_artifact=false"]
    assert fit_with_wandb([*settings, *own], "runs/short") == 0
    run = OfflineRun("runs/short")
    assert not [name for name in run.artifacts if name.startswith("run-folder:")]
    tables = [(step, read_table(path)) for step, path in run.all_logged("facts/table")]
    assert [step for step, _ in tables] == [3, 6, 6]  # two epochs of three steps, and the end
    nll = []
    for _, rows in tables:
        assert len(rows) == 5
        assert all(row["kept"] for row in rows)
        nll.append({row["fact_id"]: row["nll"] for row in rows})
    assert None not in {value for values in nll for value in values.values()}
    assert nll[0] != {name: nll[1].get(name) for name in nll[0]}
    assert tables[0][1][0].keys() >= {"prompt", "target", "nll"}
    assert "after" not in tables[0][1][0]  # nobody was asked yet
    assert tables[-1][1][0].keys() >= {"prompt", "target", "before", "after", "right", "nll"}
    assert "net_transfer" not in tables[-1][1][0]  # of the long table
    course = json.loads(Path("runs/short/summary.json").read_text(encoding="utf-8"))["epochs"]
    assert len(course) == 2


def test_each_command_has_its_own_run_also_after_an_error(settings, facts_file, monkeypatch):
    import wandb

    assert fit_with_wandb(settings, "runs/one") == 0
    assert wandb.run is None

    from lit_semantic_peft.training import SemanticPeftModule

    def fail(*_: Any) -> None:
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(SemanticPeftModule, "on_train_epoch_start", fail)
        with pytest.raises(RuntimeError, match="no more memory"):
            fit_with_wandb(settings, "runs/two")
    assert wandb.run is None
    assert [OfflineRun(f"runs/{name}").exit_code for name in ("one", "two")] == [0, 1]
    assert OfflineRun("runs/one").id != OfflineRun("runs/two").id

    # A run folder that goes again does so after W&B has closed its files in it.
    facts_file.write_text('{"prompt": "same", "target": "a"}\n{"prompt": "same", "target": "b"}\n', encoding="utf-8")
    assert fit_with_wandb(settings, "runs/three") == 2
    assert wandb.run is None
    assert not Path("runs/three").exists()


def test_a_run_of_somebody_else_is_used_and_stays_open(settings):
    import wandb

    with wandb.init(project="mine", dir=str(Path("runs")), mode="offline") as own:
        assert fit_with_wandb(settings, "runs/inner") == 0
        assert wandb.run is own
    assert "val/efficacy_teacher_forced" in OfflineRun("runs").metrics()


def test_a_refused_connection_stops_nothing(settings, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # not listening: refused
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        online = [one for one in WANDB if "offline" not in one]
        own = [*settings, *online, "--trainer.default_root_dir=runs/alone", "--trainer.max_epochs=1"]
        with said(caplog) as messages:
            assert main(["fit", *own]) == 0
    assert_complete("runs/alone")
    assert any("cannot open the run online" in text and "wandb sync" in text for text in messages)
    assert "val/efficacy_teacher_forced" in OfflineRun("runs/alone").metrics()


def test_failing_calls_stop_nothing_and_are_named(settings, monkeypatch, caplog):
    import wandb

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection reset by peer")

    with monkeypatch.context() as patch, said(caplog) as messages:
        for name in ("log", "log_artifact"):
            patch.setattr(wandb.Run, name, fail)
        assert fit_with_wandb(settings, "runs/broken") == 0
    assert_complete("runs/broken")
    assert any(re.search(r"did not take .+ at step \d", text) for text in messages), messages
    assert any(re.search(r"missed \d\d+ calls", text) for text in messages), messages
    assert OfflineRun("runs/broken").exit_code == 0


def assert_complete(folder: str) -> None:
    names = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "summary.json",
        "facts.parquet",
        "report.html",
        "plots/interference.png",
        "adapter/adapter_model.safetensors",
        "checkpoints/last.ckpt",
    }


@contextmanager
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the package said by log, filled when the block ends."""
    messages: list[str] = []
    caplog.set_level("INFO", "lit_semantic_peft")
    yield messages
    messages += [record.getMessage() for record in caplog.records]


def test_the_dashboard_recipe_names_what_is_logged(settings):
    """Every logged key is in the recipe's tables, and every key there is logged, or a score that a run may not have."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "wandb_dashboard.md").read_text(encoding="utf-8")
    in_rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {key for cell in in_rows for key in re.findall(r"`([^`]+)`", cell)}
    dropping = [
        "--data.selection.filters="
        '[{"class_path": "lit_semantic_peft.semantics.RandomFilter", "init_args": {"keep": 0.5}}]',
        '--data.forms.sources=[{"class_path": "lit_semantic_peft.facts.forms.Question"}]',
        "--interference.num_facts=4",
    ]
    assert fit_with_wandb([*settings, *dropping], "runs/all") == 0
    run = OfflineRun("runs/all")
    media = {name.removesuffix("/path") for row in run.history for name in row if name.endswith("/path")}
    scores = {f"test/{score.name}" for score in (*SCORES, *RETENTION)}
    logged = run.metrics() - {"trainer/global_step"} | media
    ends = {f"{name}_{end}" for name in scores & logged for end in ("low", "high")}
    dropped = {f"test/{score.name}_dropped" for score in SCORES}
    assert ends <= logged
    assert {"test/efficacy_dropped", "test/locality_dropped"} <= logged
    assert logged - ends - dropped <= documented
    assert scores <= documented
    assert documented - logged <= scores  # this model knows nothing that it could forget


def test_in_a_process_of_its_own(settings, tmp_path):
    """Without its logger W&B is not imported; a refused run with it leaves no folder that blocks the next.

    W&B writes once more when the process ends.
    """
    refused = tmp_path / "runs" / "refused"
    too_short = "--data.encoding.max_length=2"  # refused when the facts become tokens, when W&B has begun
    calls = [
        (0, ["score", *settings, "--output=scores"]),
        (0, ["fit", *settings, "--trainer.default_root_dir=runs/one"]),
        (2, ["fit", *settings, too_short, *WANDB, f"--trainer.default_root_dir={refused}"]),
    ]
    program = (
        "import sys\n"
        "from lit_semantic_peft.__main__ import main\n"
        f"for status, arguments in {calls!r}:\n"
        "    assert 'wandb' not in sys.modules\n"
        "    assert main(arguments) == status, arguments\n"
        "assert 'wandb' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not refused.exists()
