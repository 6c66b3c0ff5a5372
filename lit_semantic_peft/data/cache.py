"""Scores of the base model, kept under a key of everything that they depend on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
            "template": encoder.template,
            "distances": [{"name": distance.name, **vars(distance)} for distance in distances],
            "scoring_version": SCORING_VERSION,
        }

    def load(self, manifest: dict[str, Any]) -> ScoredFacts | None:
        """The table computed from exactly this, or None. A damaged table counts as absent and is named in the log."""
        path = self._path(manifest)
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

    def store(self, manifest: dict[str, Any], scored: ScoredFacts) -> None:
        """Keeps a table. The manifest is written first, so that a table without one is never met."""
        path = self._path(manifest)
        write_json(path.with_suffix(".json"), manifest)
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

    def _path(self, manifest: dict[str, Any]) -> Path:
        return self.folder / f"{content_key(manifest)}.parquet"
