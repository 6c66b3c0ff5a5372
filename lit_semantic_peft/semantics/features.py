"""Features: arrays per fact that some filters use besides the distance.

A filter names the feature that it needs and asks the table for it (`ScoredFacts.feature`). The data module measures it
on one rank, for exactly the requested facts, and caches it. The cache key contains everything that it depends on:
facts, base model, and the feature's own settings, which are plain data for that reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel
from typing_extensions import override

from lit_semantic_peft.arguments import written
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics.table import FloatArray
from lit_semantic_peft.tokens import EncodedFact, FactEncoder


class ScoringContext:
    """Base model and tokenization with which facts are measured. The model is loaded once, when first used.

    Args:
        load_model: Returns the base model, on the device where it shall run, in evaluation mode.
        encoder: Tokenizes the facts.
        batch_size: Facts per batch.
        encoded: Tokens of facts that are tokenized already, by their ids.
        is_checked: Whether the self-check decides how the model answers; part of cache keys.
        prefix_tree: As in `measures_trees`.
    """

    def __init__(
        self,
        load_model: Callable[[], PreTrainedModel],
        encoder: FactEncoder,
        batch_size: int = 64,
        encoded: Mapping[str, EncodedFact] | None = None,
        *,
        is_checked: bool = False,
        prefix_tree: bool | None = None,
    ) -> None:
        self._load_model = load_model
        self.encoder = encoder
        self.batch_size = batch_size
        self.is_checked = is_checked
        self.prefix_tree = prefix_tree
        self._encoded = encoded or {}

    @cached_property
    def model(self) -> PreTrainedModel:
        """The base model."""
        return self._load_model()

    def encode_facts(self, facts: Sequence[Fact]) -> list[EncodedFact]:
        """Tokens of facts, of which none is tokenized twice.

        Args:
            facts: The facts.
        """
        missing = [fact for fact in facts if fact.id not in self._encoded]
        added = dict(zip((fact.id for fact in missing), self.encoder.encode_facts(missing), strict=True))
        return [added.get(fact.id) or self._encoded[fact.id] for fact in facts]


class Feature(ABC):
    """An array per fact. Its settings are attributes with plain data."""

    version = 1
    """Part of the cache key. Increment it with every code change that changes a value."""

    def __repr__(self) -> str:
        return written(self)

    @abstractmethod
    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        """Measures facts.

        Args:
            context: Base model and tokenization.
            facts: At least one, sorted by id: rows may depend on each other, but not on the order of the file.

        Returns:
            float64 `(n, ...)`, finite.
        """


class TargetEmbedding(Feature):
    """Mean input embedding of a fact's target tokens under the base model, `(n, H)`. Needs no pass over the model.

    Source: our reading; `ResponseDistance` uses the same embedding of the target.
    """

    @override
    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        table = context.model.get_input_embeddings().weight.detach()
        rows = [
            table[torch.tensor(encoded.target_ids, device=table.device)].float().mean(dim=0)
            for encoded in context.encode_facts(facts)
        ]
        stacked: FloatArray = torch.stack(rows).double().cpu().numpy()
        return stacked


def in_order_of_ids(fact_id: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Row numbers that sort facts by id. Sums in this order do not depend on the order of the file.

    Args:
        fact_id: Unique ids.
    """
    return np.array(sorted(range(len(fact_id)), key=fact_id.__getitem__), dtype=np.intp)
