"""Features of facts, measured when a filter asks for them and kept under a key of everything that they depend on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.facts import Fact, facts_key
from lit_semantic_peft.files import atomic_path, content_key, write_json
from lit_semantic_peft.models.base import BaseModelSource
from lit_semantic_peft.semantics import Feature, ScoringContext
from lit_semantic_peft.semantics.table import FloatArray

logger = logging.getLogger(__name__)


class FeatureCache:
    """Gives the rows of a feature for some facts, from its folder or from the base model.

    Args:
        folder: Where the rows are, each array beside a readable manifest; made when missing.
        source: The base model.
        dtype: Type of its weights.
        context: What is measured with.
        facts: All facts that may be asked for.
    """

    def __init__(
        self, folder: str | Path, source: BaseModelSource, dtype: str, context: ScoringContext, facts: Sequence[Fact]
    ) -> None:
        self.folder = Path(folder)
        self.source = source
        self.dtype = dtype
        self.context = context
        self.facts = {fact.id: fact for fact in facts}

    def __call__(self, feature: Feature, fact_id: tuple[str, ...]) -> FloatArray:
        """The rows of some facts.

        Args:
            feature: What to measure.
            fact_id: The facts; what is measured does not depend on their order.

        Returns:
            float64 `(n, ...)`, in the order of `fact_id`.
        """
        in_order = sorted(fact_id)
        row_of = {one: row for row, one in enumerate(in_order)}
        rows = self._rows(feature, [self.facts[one] for one in in_order])
        return rows[[row_of[one] for one in fact_id]]

    def _rows(self, feature: Feature, facts: Sequence[Fact]) -> FloatArray:
        manifest = self._manifest(feature, facts)
        path = self.folder / f"{content_key(manifest)}.npy"
        name = type(feature).__name__
        if path.is_file():
            try:
                rows: FloatArray = np.load(path)
                logger.info("%s of %d facts comes from the cache", name, len(facts))
                return rows
            except (OSError, ValueError) as error:
                logger.warning("The cached %s %s cannot be read (%s); it is measured anew.", name, path, error)
        logger.info("Measuring %s of %d facts", name, len(facts))
        rows = feature.measure(self.context, facts)
        write_json(path.with_suffix(".json"), manifest)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
        return rows

    def _manifest(self, feature: Feature, facts: Sequence[Fact]) -> dict[str, Any]:
        encoder = self.context.encoder
        return {
            "feature": identity(feature),
            "facts_key": facts_key(facts),
            "num_facts": len(facts),
            "base_model": self.source.name,
            "base_fingerprint": self.source.fingerprint,
            "dtype": self.dtype,
            **encoder.identity,
            "append_eos": encoder.append_eos,
        }
