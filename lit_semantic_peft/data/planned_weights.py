"""The loss weights that are known before training: of each fact, at each point of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlannedWeights:
    """Each fact's planned loss weight. It moves on a straight line from the start to the end of training.

    What a step's loss weighs may differ from it by the factors of that step, see
    `lit_semantic_peft.training.loss_weights.LossWeights`.

    Attributes:
        start: At the start of training, float64 `(n,)`: mean 1 over the kept facts, 0 for the others.
        end: At the end of training; equal to `start` unless the weighting moves.
        deferred_from_epoch: Epoch from which dropped facts are trained too; None for never.
        deferred: `start` and `end` from that epoch on: mean 1 over all facts that are trained then. None where nothing
            is deferred.

    Example:
        >>> weights = PlannedWeights(np.array([2.0, 0.0]), np.array([1.0, 1.0]))
        >>> weights.at([0, 1], epoch=0, progress=0.5).tolist()
        [1.5, 0.5]
    """

    start: np.ndarray
    end: np.ndarray
    deferred_from_epoch: int | None = None
    deferred: tuple[np.ndarray, np.ndarray] | None = None

    def start_and_end(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The weights at the start and at the end of training, among the facts of an epoch.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            Twice float64 `(n,)`, each with mean 1 over the epoch's facts and 0 for the others.
        """
        if self.deferred is not None and self.trains_deferred(epoch):
            return self.deferred
        return self.start, self.end

    def at(self, rows: Sequence[int], epoch: int, progress: float) -> np.ndarray:
        """The weights at one point of training.

        Args:
            rows: Fact indices.
            epoch: Number of the epoch, from 0.
            progress: Share of training that is done, [0, 1].

        Returns:
            float64 `(len(rows),)`.
        """
        start, end = (weights[list(rows)] for weights in self.start_and_end(epoch))
        return np.asarray((1 - progress) * start + progress * end)

    def trains_deferred(self, epoch: int) -> bool:
        """Whether an epoch trains the dropped facts too.

        Args:
            epoch: Number of the epoch, from 0.
        """
        return self.deferred_from_epoch is not None and epoch >= self.deferred_from_epoch

    @property
    def is_ever_above_0(self) -> np.ndarray:
        """Whether a fact weighs something at the start or at the end, before facts come back, bool `(n,)`."""
        return np.asarray(np.maximum(self.start, self.end) > 0)

    @property
    def column(self) -> list[float]:
        """The column `loss_weight` of the fact table: at the start of the first epoch that has all trained facts."""
        column: list[float] = self.start_and_end(self.deferred_from_epoch or 0)[0].tolist()
        return column
