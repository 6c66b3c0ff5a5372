"""What `KnowledgeDataModule.setup` decides about each fact, for everything that comes after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_semantic_peft.data.forms import PreparedForms
from lit_semantic_peft.data.planned_weights import PlannedWeights
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics import FilterStep, ScoredFacts
from lit_semantic_peft.tokens import EncodedFact

# Reasons for which a fact stays dropped: there is nothing to teach, another fact teaches it, or the opposite is taught.
_DROPPED_FOR_GOOD = {"already_known", "near_duplicate", "contradiction"}


@dataclass(frozen=True)
class PreparedFacts:
    """What `setup` decides, one row per fact in file order; `fact_index` is the row number.

    Attributes:
        facts: All facts that were read.
        encoded: Token ids of their own prompts and targets.
        forms: In which forms they are taught.
        scored: Their distances, likelihoods and answers under the base model.
        is_kept: Whether the filters kept a fact, bool `(n,)`.
        reason: Why a fact is not kept: a filter's reason, or `retain` or `probe` for its split; None if it is.
        weights: The planned factor of each fact's loss.
        key: Content key of the facts and of everything that decided their status.
        retained_index: Fact indices whose answers training retains (`model.retain`) instead of teaching them.
        steps: What each filter did, in order.
    """

    facts: tuple[Fact, ...]
    encoded: tuple[EncodedFact, ...]
    forms: PreparedForms
    scored: ScoredFacts
    is_kept: np.ndarray
    reason: tuple[str | None, ...]
    weights: PlannedWeights
    key: str
    retained_index: tuple[int, ...] = ()
    steps: tuple[FilterStep, ...] = ()

    def __repr__(self) -> str:
        return f"PreparedFacts({len(self.facts)} facts, {int(self.is_kept.sum())} kept)"

    @property
    def kept_index(self) -> list[int]:
        """Fact indices that the filters kept, ascending."""
        return [int(index) for index in np.flatnonzero(self.is_kept)]

    @property
    def is_dropped(self) -> np.ndarray:
        """Whether a filter dropped a fact, bool `(n,)`; facts of the splits `retain` and `probe` were never offered."""
        is_offered = np.array([fact.split == "inject" for fact in self.facts], dtype=np.bool_)
        is_dropped: np.ndarray = is_offered & ~self.is_kept
        return is_dropped

    @property
    def is_deferred(self) -> np.ndarray:
        """Whether a fact is dropped but trained from `weights.deferred_from_epoch` on, bool `(n,)`."""
        if self.weights.deferred_from_epoch is None:
            return np.zeros_like(self.is_kept)
        return is_deferrable(self.facts, self.reason)

    @property
    def is_trained(self) -> np.ndarray:
        """Whether a fact is trained in any epoch, bool `(n,)`."""
        is_trained: np.ndarray = self.is_kept | self.is_deferred
        return is_trained

    @property
    def is_untouched(self) -> np.ndarray:
        """Whether a fact has no part in training at all, bool `(n,)`: only such facts show what else is retained."""
        is_untouched = ~self.is_trained
        is_untouched[list(self.retained_index)] = False
        return is_untouched

    def trained_index(self, epoch: int) -> list[int]:
        """Fact indices that are trained in an epoch, ascending.

        Args:
            epoch: Number of the epoch, from 0.
        """
        is_in_epoch = self.is_trained if self.weights.trains_deferred(epoch) else self.is_kept
        return [int(index) for index in np.flatnonzero(is_in_epoch)]

    def columns(self) -> dict[str, list[Any]]:
        """The columns of the fact table that are known before training, by name."""
        return {
            "fact_id": [fact.id for fact in self.facts],
            "fact_index": list(range(len(self.facts))),
            "subject": [fact.subject for fact in self.facts],
            "relation": [fact.relation for fact in self.facts],
            "prompt": [fact.prompt for fact in self.facts],
            "target": [fact.target for fact in self.facts],
            "target_true": [fact.target_true for fact in self.facts],
            "split": [fact.split for fact in self.facts],
            "source": [fact.source for fact in self.facts],
            "kept": self.is_kept.tolist(),
            "drop_reason": list(self.reason),
            "trained_from_epoch": [
                0 if is_kept else self.weights.deferred_from_epoch if is_deferred else None
                for is_kept, is_deferred in zip(self.is_kept, self.is_deferred, strict=True)
            ],
            "taught_forms": [[one.form.prompt for one in forms.taught] for forms in self.forms.of_facts],
            "num_target_tokens": [one.num_target_tokens for one in self.encoded],
            "distance": self.scored.distance.tolist(),
            "stratum": list(self.scored.stratum) or [None] * len(self.facts),
            "nll_before": self.scored.base_nll.tolist(),
            "loss_weight": self.weights.column,
            **{f"distance_{name}": values.tolist() for name, values in self.scored.distances.items()},
        }


def is_deferrable(facts: Sequence[Fact], reason: Sequence[str | None]) -> np.ndarray:
    """Which dropped facts may be trained later: the reason is not one of `_DROPPED_FOR_GOOD`; bool `(n,)`.

    Args:
        facts: The facts.
        reason: Why each is not kept, as `PreparedFacts.reason`.
    """
    return np.array(
        [
            fact.split == "inject" and why is not None and why not in _DROPPED_FOR_GOOD
            for fact, why in zip(facts, reason, strict=True)
        ]
    )
