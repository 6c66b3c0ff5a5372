"""Scores of the base model, kept under a key of everything that they depend on."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.facts import Fact, facts_key
from lit_semantic_peft.files import atomic_path, content_key, write_json
from lit_semantic_peft.models.base import BaseModelSource
from lit_semantic_peft.semantics import SCORING_VERSION, Distance, ScoredFacts
from lit_semantic_peft.tokens import FactEncoder

logger = logging.getLogger(__name__)

_DISTANCE_PREFIX = "distance_"


class ScoreCache:
    """A folder of score tables, each beside a readable manifest of what it was computed from.

    Args:
        folder: Where the tables are; made when missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def manifest(
        self,
        facts: Sequence[Fact],
        base: BaseModelSource,
        encoder: FactEncoder,
        distances: Sequence[Distance],
        dtype: str,
    ) -> dict[str, Any]:
        """Everything that the scores depend on, as plain data.

        Args:
            facts: The facts, in order.
            base: The base model.
            encoder: How facts are spelt.
            distances: What is measured.
            dtype: Type of the base weights.
        """
        return {
            "facts": facts_key(facts),
            "num_facts": len(facts),
            "base_model": base.public_name,
            "base_fingerprint": base.fingerprint,
            "dtype": dtype,
            **encoder.identity,
            "distances": [identity(distance) for distance in distances],
            "scoring_version": SCORING_VERSION,
        }

    def load(self, manifest: dict[str, Any]) -> ScoredFacts | None:
        """The table computed from exactly this, or None. A damaged table counts as absent and is named in the log."""
        return _read(self._path(manifest), manifest)

    def store(self, manifest: dict[str, Any], scored: ScoredFacts) -> None:
        """Keeps a table, which ends its parts. The manifest is written first: a table without one is never met."""
        path = self._path(manifest)
        write_json(path.with_suffix(".json"), manifest)
        _write(path, scored)
        shutil.rmtree(self._parts(manifest), ignore_errors=True)

    def load_part(self, manifest: dict[str, Any], number: int, fact_id: Sequence[str]) -> ScoredFacts | None:
        """A part that an earlier job has scored before it ended, or None.

        Args:
            manifest: Of the whole table.
            number: Number of the part.
            fact_id: The facts that the part must hold, in order; a part cut in another way counts as absent.
        """
        part = _read(self._parts(manifest) / f"{number}.parquet", manifest)
        return part if part is not None and part.fact_id == tuple(fact_id) else None

    def store_part(self, manifest: dict[str, Any], number: int, part: ScoredFacts) -> None:
        """Keeps a part of a table until the table is whole."""
        _write(self._parts(manifest) / f"{number}.parquet", part)

    def _path(self, manifest: dict[str, Any]) -> Path:
        return self.folder / f"{content_key(manifest)}.parquet"

    def _parts(self, manifest: dict[str, Any]) -> Path:
        return self._path(manifest).with_suffix(".parts")


def _read(path: Path, manifest: dict[str, Any]) -> ScoredFacts | None:
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        logger.warning("The cached scores %s cannot be read (%s); facts are scored anew.", path, error)
        return None
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    distances = {
        name.removeprefix(_DISTANCE_PREFIX): np.array(values, dtype=np.float64)
        for name, values in columns.items()
        if name.startswith(_DISTANCE_PREFIX)
    }
    return ScoredFacts(
        fact_id=tuple(columns["fact_id"]),
        relation=tuple(columns["relation"]),
        distance=distances[manifest["distances"][0]["name"]],
        base_nll=np.array(columns["base_nll"], dtype=np.float64),
        is_known=np.array(columns["is_known"], dtype=np.bool_),
        base_answer=tuple(columns["base_answer"]),
        distances=distances,
    )


def _write(path: Path, scored: ScoredFacts) -> None:
    table = pa.table(
        {
            "fact_id": list(scored.fact_id),
            "relation": list(scored.relation),
            "base_nll": scored.base_nll,
            "is_known": scored.is_known,
            "base_answer": list(scored.base_answer),
            **{_DISTANCE_PREFIX + name: values for name, values in scored.distances.items()},
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
