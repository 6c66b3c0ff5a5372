"""More than a number per fact: what some filters look at beside the distance.

A filter names the feature that it needs and asks the table for it (`ScoredFacts.feature`). The data module measures it
on one rank, for exactly the facts that are asked for, and keeps it in the cache under a key of everything that it
depends on: facts, base model, and the feature's own settings, which are plain data for that reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel

from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics.table import FloatArray
from lit_semantic_peft.tokens import EncodedFact, FactEncoder


class ScoringContext:
    """What facts are measured with. The base model is loaded when it is first asked for, and once.

    Args:
        load_model: Gives the base model, on the device where it shall run, in evaluation mode.
        encoder: How facts become tokens.
        batch_size: Facts that run together.
        encoded: Tokens of facts that are tokenized already, by their ids.
    """

    def __init__(
        self,
        load_model: Callable[[], PreTrainedModel],
        encoder: FactEncoder,
        batch_size: int = 64,
        encoded: Mapping[str, EncodedFact] | None = None,
    ) -> None:
        self._load_model = load_model
        self.encoder = encoder
        self.batch_size = batch_size
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
    """A row of numbers per fact. Its settings are plain data, in attributes."""

    version = 1
    """Part of the cache key; raised whenever a change of the code changes a number."""

    @abstractmethod
    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        """Measures facts.

        Args:
            context: Base model and spelling.
            facts: At least one, in the order of their ids: rows may depend on each other but not on the file's order.

        Returns:
            float64 `(n, ...)`, finite.
        """


class TargetEmbedding(Feature):
    """Mean input embedding of a fact's target tokens under the base model, `(n, H)`. Costs no pass.

    Source: our reading of where an answer "lies"; the same point that `ResponseDistance` measures to.
    """

    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        """See `Feature.measure`."""
        table = context.model.get_input_embeddings().weight.detach()
        rows = [
            table[torch.tensor(encoded.target_ids, device=table.device)].float().mean(dim=0)
            for encoded in context.encode_facts(facts)
        ]
        stacked: FloatArray = torch.stack(rows).double().cpu().numpy()
        return stacked


def in_order_of_ids(fact_id: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Row numbers that sort facts by id: sums that are taken in this order do not depend on the file's.

    Args:
        fact_id: Unique ids.
    """
    return np.array(sorted(range(len(fact_id)), key=fact_id.__getitem__), dtype=np.intp)
