"""The folder that a run leaves behind. Only this module knows the names of its files."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import WRITTEN_BY, read_text, refuse_foreign, write_json
from lit_semantic_peft.interference.matrix import InterferenceMatrix
from lit_semantic_peft.reports.records import Manifest, Summary
from lit_semantic_peft.reports.score_records import Distances, Doubtful, Findings, ScoreContents
from lit_semantic_peft.reports.tables import (
    FACT_COLUMNS,
    FACT_TABLE,
    GRADIENT_MATRIX,
    PROBE_COLUMNS,
    PROBE_TABLE,
    read_interference,
    read_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCE_PLOT = "distances"
"""The plot of `score` that is no chart of the report."""

_FIT = "lit-semantic-peft fit --config FILE"
_NAMES_OF_SUBJECTS = frozenset({"subject_gate.json", "anchors.json"})  # beside an adapter, of a gate and of experts


class Entry:
    """A file or folder of a run; on an object of `RunPaths` its path.

    Args:
        name: Its path in the run folder.
        is_shared: Whether it is uploaded to a dashboard with the run's results.
        holds_fact_text: Whether it holds prompts, targets or answers.
        of_training: Whether its existence shows that a training or an evaluation has written here.
        kind: As which kind of output it is known; its name where None.
    """

    def __init__(
        self,
        name: str,
        *,
        is_shared: bool = False,
        holds_fact_text: bool = False,
        of_training: bool = True,
        kind: str | None = None,
    ) -> None:
        self.name = name
        self.kind = kind or name
        self.is_file = "/" not in name and bool(Path(name).suffix)
        self.is_shared = is_shared
        self.holds_fact_text = holds_fact_text
        self.of_training = of_training

    @overload
    def __get__(self, paths: None, owner: type) -> "Entry": ...

    @overload
    def __get__(self, paths: "RunPaths", owner: type) -> Path: ...

    def __get__(self, paths: "RunPaths | None", owner: type) -> "Path | Entry":
        return self if paths is None else paths.folder / self.name


class RunPaths:
    """The path of each file and folder of a run; nothing is made or checked. A new one is a line here.

    Attributes:
        folder: The run folder.
        config: The configuration that the run was started with.
        manifest: Which facts and base model the results are of.
        dropped: The facts that a filter dropped, one a line as they were read, with the reason.
        facts: The fact table, a row per fact.
        probes: The probe table, a row per neighbour, paraphrase and portability question.
        summary: The numbers of the run.
        interference: The gradient matrix after training.
        interference_by_group: Its means by relation, stratum and decile of distance.
        alone_versus_together: What the other facts cost each fact that was also trained alone.
        distances: How the distances agree and what they predict, from `score`.
        doubtful: The facts that contradict what the base model knows with confidence, from `score`.
        findings: What each filter would drop, near-duplicates by template, contradictions, from `score`.
        predictions: The answers of `predict`.
        report: The report, one self-contained page.
        plots: The report's plots as PNG files.
        adapter: The adapter at the end of training, a standard PEFT folder.
        adapter_best: The adapter of the best epoch, a standard PEFT folder.
        checkpoints: Lightning's checkpoints.
        last_checkpoint: The one to resume from.
        logs: What the CSV logger writes.
        score: What `score` writes: a folder with tables and a report of its own.
        inspection: What `inspect` writes: the audit of the adapter.
        lock: Held by the process that writes into the folder.
        wandb: What W&B writes.
    """

    config = Entry("config.yaml", is_shared=True)
    manifest = Entry("manifest.json", is_shared=True)
    dropped = Entry("dropped.jsonl", is_shared=True, holds_fact_text=True)
    facts = Entry("facts.parquet", is_shared=True, holds_fact_text=True, kind=FACT_TABLE)
    probes = Entry("probes.parquet", is_shared=True, holds_fact_text=True, kind=PROBE_TABLE)
    summary = Entry("summary.json", is_shared=True, holds_fact_text=True)
    interference = Entry("interference.safetensors", is_shared=True, kind=GRADIENT_MATRIX)
    interference_by_group = Entry("interference_by_group.json", is_shared=True)
    alone_versus_together = Entry("alone_versus_together.json", is_shared=True)
    distances = Entry("distances.json")
    doubtful = Entry("doubtful.json", holds_fact_text=True)
    findings = Entry("findings.json", holds_fact_text=True)
    predictions = Entry("predictions.jsonl", holds_fact_text=True, of_training=False)
    report = Entry("report.html", is_shared=True, holds_fact_text=True)
    plots = Entry("plots", is_shared=True)
    adapter = Entry("adapter", is_shared=True)
    adapter_best = Entry("adapter_best", is_shared=True)
    checkpoints = Entry("checkpoints")
    last_checkpoint = Entry("checkpoints/last.ckpt")
    logs = Entry("logs", of_training=False)
    score = Entry("score", of_training=False)
    inspection = Entry("inspection", of_training=False)
    lock = Entry(".lock", of_training=False)
    wandb = Entry("wandb", of_training=False)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plot(self, name: str) -> Path:
        """The file of a plot.

        Args:
            name: Name of the plot, as `ChartEntry.plot`.
        """
        return self.plots / f"{name}.png"

    def drawn_plots(self) -> list[Path]:
        """The plots that are there, by name."""
        return sorted(self.plots.glob("*.png"))


ENTRIES: tuple[Entry, ...] = tuple(entry for entry in vars(RunPaths).values() if isinstance(entry, Entry))
"""All files and folders of a run."""


@dataclass(frozen=True)
class RunContents:
    """What a run folder holds, read once.

    Attributes:
        facts: The fact table.
        summary: The numbers of the run.
        probes: The probe table; None where no probes were asked.
        matrix: The gradient matrix; None where it was not measured.
        config: The configuration as text; empty where there is none.
        name: Name of the folder.
        score: What `score` found, where it has written the folder; None for a training.
    """

    facts: pa.Table
    summary: Summary
    probes: pa.Table | None = None
    matrix: InterferenceMatrix | None = None
    config: str = ""
    name: str = "run"
    score: ScoreContents | None = None


class RunFolder:
    """A run folder, usually `runs/<name>`. Each property reads its file anew, so keep the value in a variable.

    Args:
        path: The folder.

    Example:
        >>> RunFolder("runs/one").paths.report.as_posix()
        'runs/one/report.html'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.paths = RunPaths(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.absolute().name

    @property
    def facts(self) -> pa.Table:
        """The fact table, a row per fact, columns as in `FACT_COLUMNS`; what was not measured is null.

        Raises:
            InputError: The file is missing or is no fact table.
        """
        return read_table(self._existing(self.paths.facts), FACT_COLUMNS)

    @property
    def probes(self) -> pa.Table:
        """The probe table, a row per question, columns as in `PROBE_COLUMNS`.

        Raises:
            InputError: The file is missing or is no probe table.
        """
        return read_table(self._existing(self.paths.probes), PROBE_COLUMNS)

    @property
    def matrix(self) -> InterferenceMatrix:
        """The gradient matrix after training, its rows named by the fact table beside it, if there is one.

        Raises:
            InputError: The file is missing or holds no gradient matrix, or the fact table cannot be read.
        """
        matrix = read_interference(self._existing(self.paths.interference))
        return _named(matrix, self.facts) if self.paths.facts.is_file() else matrix

    @property
    def summary(self) -> Summary:
        """The numbers of the run.

        Raises:
            InputError: The file is missing, is no JSON, or has another form.
        """
        return Summary.from_json(self._read_json(self.paths.summary), str(self.paths.summary))

    @property
    def manifest(self) -> Manifest:
        """Which facts and base model the results are of.

        Raises:
            InputError: The file is missing, is no JSON, or has another form.
        """
        return Manifest.from_json(self._read_json(self.paths.manifest), str(self.paths.manifest))

    @property
    def config(self) -> str:
        """The configuration as text.

        Raises:
            InputError: The file is missing, or is no text.
        """
        return self._text(self.paths.config)

    def read(self) -> RunContents:
        """Everything that a report shows, each file once.

        Raises:
            InputError: The fact table or the summary is missing, or a file cannot be read.
        """
        facts, measured = self.facts, self.paths.interference
        return RunContents(
            facts=facts,
            summary=self.summary,
            probes=self.probes if self.paths.probes.is_file() else None,
            matrix=_named(read_interference(measured), facts) if measured.is_file() else None,
            config=self.config if self.paths.config.is_file() else "",
            name=self.name,
            score=self._score() if self.paths.findings.is_file() else None,
        )

    def fact_ids(self) -> list[str] | None:
        """The facts of the fact table, in its order; None where there is no table.

        Raises:
            InputError: The file is no fact table.
        """
        if not self.paths.facts.is_file():
            return None
        table = read_table(self.paths.facts, FACT_COLUMNS[:1], only_expected=True)
        ids: list[str] = table.column("fact_id").to_pylist()
        return ids

    def plot_interference(self) -> "Figure":
        """Heat map of gradient cosines, ordered by relation: orange is conflict, blue is transfer.

        Raises:
            InputError: The fact table or the gradient matrix is missing or unreadable.
        """
        from lit_semantic_peft.reports.charts import heat_map
        from lit_semantic_peft.reports.charts.png import draw_figure

        return draw_figure([heat_map(self.facts, read_interference(self._existing(self.paths.interference)))])

    def refuse_foreign_files(self, inputs: Sequence[str | os.PathLike[str]], entries: Sequence[Entry] = ()) -> None:
        """Refuses a folder in which a file would be replaced that is not this package's, or that is read.

        Args:
            inputs: Files that are read, and folders whose files are.
            entries: The files and folders that may be written; all of a run where there is none.

        Raises:
            InputError: If there is such a file.
        """
        from lit_semantic_peft.reports.charts import CHARTS
        from lit_semantic_peft.reports.charts.png import PLOT

        for entry in entries or ENTRIES:
            if entry.is_file:
                refuse_foreign(self.path / entry.name, entry.kind, inputs=inputs)
            elif entry.name == RunPaths.plots.name:
                for name in (DISTANCE_PLOT, *sorted({chart.plot for chart in CHARTS})):
                    refuse_foreign(self.paths.plot(name), PLOT, inputs=inputs)

    def is_used(self) -> bool:
        """Whether a training or an evaluation has left anything here, so that a new run must not write into it."""
        if not self.path.is_dir():
            return self.path.exists()
        other = {entry.name for entry in ENTRIES if not entry.of_training}
        return any(path.name not in other for path in self.path.iterdir())

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume."""
        return any(self.paths.checkpoints.glob("[!.]*.ckpt"))

    def is_before_first_checkpoint(self) -> bool:
        """Whether a run has begun here and ended before it wrote a checkpoint."""
        return self.paths.checkpoints.is_dir() and not self.has_checkpoint()

    def shared_files(self, *, with_fact_text: bool) -> list[Path]:
        """The files that are uploaded to a dashboard; of a folder every file directly in it.

        Args:
            with_fact_text: Whether files that hold prompts, targets, answers or subjects are among them.
        """
        shared = [
            self.path / entry.name
            for entry in ENTRIES
            if entry.is_shared and (with_fact_text or not entry.holds_fact_text)
        ]
        files = [file for path in shared for file in ([path] if path.is_file() else sorted(path.glob("*")))]
        return [file for file in files if file.is_file() and (with_fact_text or file.name not in _NAMES_OF_SUBJECTS)]

    def write_summary(self, summary: Summary) -> None:
        """Writes the numbers of the run, atomically."""
        write_json(self.paths.summary, summary.to_json(), RunPaths.summary.kind)

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes which facts and base model the results are of, atomically."""
        write_json(self.paths.manifest, manifest.to_json(), RunPaths.manifest.kind)

    def _score(self) -> ScoreContents:
        paths = self.paths
        return ScoreContents(
            Findings.from_json(self._read_json(paths.findings), str(paths.findings)),
            Doubtful.from_json(self._read_json(paths.doubtful), str(paths.doubtful)).facts,
            Distances.from_json(self._read_json(paths.distances), str(paths.distances)),
        )

    def _read_json(self, path: Path) -> Any:
        text = self._text(path)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"`{path}`: expected JSON, got: {error}") from error
        if isinstance(value, dict):
            value.pop(WRITTEN_BY, None)
        return value

    def _text(self, path: Path) -> str:
        return read_text(self._existing(path), f"`{self.path}`")

    def _existing(self, path: Path) -> Path:
        if not self.path.is_dir():
            raise InputError(f"`{self.path}`: expected a run folder, but there is none; `{_FIT}` makes one")
        if not path.is_file():
            raise InputError(f"`{self.path}`: `{path.name}` is missing from this run folder; `{_FIT}` writes it")
        return path


def _named(matrix: InterferenceMatrix, facts: pa.Table) -> InterferenceMatrix:
    """The matrix with the ids of its facts; as it is where the table lacks one of them."""
    columns = facts.select(["fact_index", "fact_id"]).to_pydict()
    id_of = dict(zip(columns["fact_index"], columns["fact_id"], strict=True))
    rows = matrix.fact_index.tolist()
    return replace(matrix, fact_id=tuple(id_of[row] for row in rows)) if id_of.keys() >= set(rows) else matrix
