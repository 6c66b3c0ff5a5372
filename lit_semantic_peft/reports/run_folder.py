"""The folder that a run leaves behind: where each file lies, and how it is read."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_json
from lit_semantic_peft.reports.summary import Summary
from lit_semantic_peft.reports.tables import (
    FACT_COLUMNS,
    PROBE_COLUMNS,
    InterferenceMatrix,
    read_interference,
    read_table,
)

_FIT = "lit-semantic-peft fit --config FILE"
_NOT_OF_A_TRAINING = {"logs", "wandb", "predictions.jsonl"}  # what `validate` and `predict` leave


class RunFolder:
    """Paths and readers of a run folder; nothing is made or checked until asked for.

    Args:
        path: The folder, usually `runs/<name>`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config(self) -> Path:
        """The configuration that the run was started with."""
        return self.path / "config.yaml"

    @property
    def adapter(self) -> Path:
        """The adapter at the end of training, a standard PEFT folder."""
        return self.path / "adapter"

    @property
    def adapter_best(self) -> Path:
        """The adapter of the best epoch, a standard PEFT folder."""
        return self.path / "adapter_best"

    @property
    def facts(self) -> Path:
        """A row per fact."""
        return self.path / "facts.parquet"

    @property
    def dropped(self) -> Path:
        """The facts that a filter dropped, one a line as they were read, with the reason."""
        return self.path / "dropped.jsonl"

    @property
    def probes(self) -> Path:
        """A row per neighbour, paraphrase and portability question."""
        return self.path / "probes.parquet"

    @property
    def interference(self) -> Path:
        """The gradient matrix after training."""
        return self.path / "interference.safetensors"

    @property
    def summary(self) -> Path:
        """The numbers of the run."""
        return self.path / "summary.json"

    @property
    def distances(self) -> Path:
        """How the distances agree and what they predict, from `score`."""
        return self.path / "distances.json"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """The report's plots as PNG files."""
        return self.path / "plots"

    @property
    def checkpoints(self) -> Path:
        """Lightning's checkpoints."""
        return self.path / "checkpoints"

    @property
    def manifest(self) -> Path:
        """Which facts and base model the results are of, for `score --run`."""
        return self.path / "manifest.json"

    def is_used(self) -> bool:
        """Whether a training or an evaluation has left anything here, so that a new run must not write into it."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(path.name not in _NOT_OF_A_TRAINING for path in self.path.iterdir())

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume."""
        return any(self.checkpoints.glob("[!.]*.ckpt"))

    def is_before_first_checkpoint(self) -> bool:
        """Whether a run has begun here and ended before it wrote a checkpoint."""
        return self.checkpoints.is_dir() and not self.has_checkpoint()

    def read_facts(self) -> pa.Table:
        """The fact table; optional columns that the file lacks are there, filled with null.

        Raises:
            InputError: The file is missing or is no fact table.
        """
        return read_table(self._existing(self.facts), FACT_COLUMNS)

    def read_probes(self) -> pa.Table:
        """The probe table, as `read_facts`.

        Raises:
            InputError: The file is missing or is no probe table.
        """
        return read_table(self._existing(self.probes), PROBE_COLUMNS)

    def read_interference(self) -> InterferenceMatrix:
        """The gradient matrix.

        Raises:
            InputError: The file is missing or holds no gradient matrix.
        """
        return read_interference(self._existing(self.interference))

    def read_summary(self) -> Summary:
        """The numbers of the run.

        Raises:
            InputError: The file is missing, is no JSON, or has another form.
        """
        return Summary.from_json(self._read_json(self.summary), str(self.summary))

    def read_manifest(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one.

        Raises:
            InputError: The file is missing or holds no JSON object.
        """
        value = self._read_json(self.manifest)
        if not isinstance(value, dict):
            raise InputError(f"`{self.manifest}`: expected an object, got {type(value).__name__}")
        return value

    def read_config(self) -> str:
        """The configuration as text.

        Raises:
            InputError: The file is missing.
        """
        return self._existing(self.config).read_text(encoding="utf-8")

    def write_summary(self, summary: Summary) -> None:
        """Writes `summary.json`, atomically."""
        write_json(self.summary, summary.to_json())

    def _read_json(self, path: Path) -> Any:
        text = self._existing(path).read_text(encoding="utf-8")
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(f"`{path}`: expected JSON, got: {error}") from error

    def _existing(self, path: Path) -> Path:
        if not self.path.is_dir():
            raise InputError(f"`{self.path}`: expected a run folder, but there is none; `{_FIT}` makes one")
        if not path.is_file():
            raise InputError(f"`{self.path}`: `{path.name}` is missing from this run folder; `{_FIT}` writes it")
        return path
