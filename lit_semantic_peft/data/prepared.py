"""What `KnowledgeDataModule.setup` decides about each fact, for everything that comes after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics import ScoredFacts
from lit_semantic_peft.tokens import EncodedFact

# Reasons for which a fact stays dropped: there is nothing to teach, another fact teaches it, or the opposite is taught.
_DROPPED_FOR_GOOD = {"already_known", "near_duplicate", "contradiction"}


@dataclass(frozen=True)
class PreparedFacts:
    """What `setup` decides, one row per fact in file order; `fact_index` is the row number.

    Attributes:
        facts: All facts that were read.
        encoded: Their token ids.
        scored: What the base model says of them.
        is_kept: Whether the filters kept a fact, bool `(n,)`.
        reason: Why a fact is not kept: a filter's reason, or `retain` or `probe` for its split; None if it is.
        loss_weight: Factor of each fact's loss, float64 `(n,)`: mean 1 over the kept facts, 0 for the others.
        final_loss_weight: The same at the end of training, where the weighting moves; else equal.
        key: Content key of the facts and of everything that decided their fate.
        deferred_from_epoch: Epoch from which dropped facts are trained too; None for never.
        deferred_loss_weight: `loss_weight` and `final_loss_weight` from that epoch on: mean 1 over all facts that are
            trained then. Empty where nothing is deferred.
        retained_index: Fact indices that training holds in place (`retain_weight`) instead of teaching them.
    """

    facts: tuple[Fact, ...]
    encoded: tuple[EncodedFact, ...]
    scored: ScoredFacts
    is_kept: np.ndarray
    reason: tuple[str | None, ...]
    loss_weight: np.ndarray
    final_loss_weight: np.ndarray
    key: str
    deferred_from_epoch: int | None = None
    deferred_loss_weight: tuple[np.ndarray, ...] = ()
    retained_index: tuple[int, ...] = ()

    @property
    def kept_index(self) -> list[int]:
        """Fact indices that the filters kept, ascending."""
        return [int(index) for index in np.flatnonzero(self.is_kept)]

    @property
    def is_deferred(self) -> np.ndarray:
        """Whether a fact is dropped but trained from `deferred_from_epoch` on, bool `(n,)`."""
        if self.deferred_from_epoch is None:
            return np.zeros_like(self.is_kept)
        return is_deferrable(self.facts, self.reason)

    @property
    def is_trained(self) -> np.ndarray:
        """Whether a fact is trained in any epoch, bool `(n,)`."""
        is_trained: np.ndarray = self.is_kept | self.is_deferred
        return is_trained

    @property
    def is_untouched(self) -> np.ndarray:
        """Whether a fact has no part in training at all, bool `(n,)`: only such facts tell what else is retained."""
        is_untouched = ~self.is_trained
        is_untouched[list(self.retained_index)] = False
        return is_untouched

    def trained_index(self, epoch: int) -> list[int]:
        """Fact indices that are trained in an epoch, ascending.

        Args:
            epoch: Number of the epoch, from 0.
        """
        return [int(index) for index in np.flatnonzero(self.is_trained)] if self._is_late(epoch) else self.kept_index

    def loss_weights(self, epoch: int) -> tuple[np.ndarray, ...]:
        """Each fact's loss weight by the start's and by the end's weighting, among the facts of an epoch.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            Twice float64 `(n,)`, each with mean 1 over the epoch's facts and 0 for the others.
        """
        return self.deferred_loss_weight if self._is_late(epoch) else (self.loss_weight, self.final_loss_weight)

    def loss_weight_at(self, rows: Sequence[int], epoch: int, progress: float) -> np.ndarray:
        """Loss weights in the middle of training, on the line between the start's and the end's.

        Args:
            rows: Fact indices.
            epoch: Number of the epoch, from 0.
            progress: Share of training that is done, [0, 1].

        Returns:
            float64 `(len(rows),)`.
        """
        start, end = (weights[list(rows)] for weights in self.loss_weights(epoch))
        return np.asarray((1 - progress) * start + progress * end)

    def _is_late(self, epoch: int) -> bool:
        return self.deferred_from_epoch is not None and epoch >= self.deferred_from_epoch

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
                0 if is_kept else self.deferred_from_epoch if is_deferred else None
                for is_kept, is_deferred in zip(self.is_kept, self.is_deferred, strict=True)
            ],
            "num_target_tokens": [one.num_target_tokens for one in self.encoded],
            "distance": self.scored.distance.tolist(),
            "stratum": list(self.scored.stratum) or [None] * len(self.facts),
            "nll_before": self.scored.base_nll.tolist(),
            "loss_weight": self.loss_weights(self.deferred_from_epoch or 0)[0].tolist(),
            **{f"distance_{name}": values.tolist() for name, values in self.scored.distances.items()},
        }


def is_deferrable(facts: Sequence[Fact], reason: Sequence[str | None]) -> np.ndarray:
    """Which facts a filter dropped for what may pass, bool `(n,)`.

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
