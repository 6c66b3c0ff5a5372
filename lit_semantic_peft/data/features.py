"""Features of facts, measured when a filter asks for them and kept in the cache."""

import logging
from collections.abc import Sequence
from typing import Any

from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.facts import Fact, facts_key
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.semantics import Feature, ScoringContext
from lit_semantic_peft.semantics.table import FloatArray

logger = logging.getLogger(__name__)


class MeasuredFeatures:
    """The rows of a feature for some facts, from the cache or from the base model.

    Args:
        cache: Where the rows are kept.
        base: The base model.
        context: What is measured with.
        facts: All facts that may be asked for.
    """

    def __init__(self, cache: ContentCache, base: BaseModel, context: ScoringContext, facts: Sequence[Fact]) -> None:
        self.cache = cache
        self.base = base
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
        name = type(feature).__name__
        kept = self.cache.load_array(manifest)
        if kept is not None:
            logger.info("%s of %d facts comes from the cache", name, len(facts))
            return kept
        logger.info("Measuring %s of %d facts", name, len(facts))
        rows = feature.measure(self.context, facts)
        self.cache.store_array(manifest, rows)
        return rows

    def _manifest(self, feature: Feature, facts: Sequence[Fact]) -> dict[str, Any]:
        encoder = self.context.encoder
        return {
            "feature": identity(feature),
            "facts_key": facts_key(facts),
            "num_facts": len(facts),
            "base_model": self.base.source.name,
            "base_fingerprint": self.base.source.fingerprint,
            "dtype": self.base.dtype,
            **encoder.identity,
            "append_eos": encoder.append_eos,
            "self_check": self.context.is_checked,
        }
