"""Loss weights from the current model's predictions, computed from the training step's own logits."""

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.distances import Distance, Surprisal, TargetPass
from lit_semantic_peft.semantics.shaping import require_plain
from lit_semantic_peft.semantics.table import FloatArray
from lit_semantic_peft.semantics.weightings import MAX_DISTANCE, Weighting


class Online(Weighting):
    """Another weighting, applied to the distance (or likelihood) under the current model in each step.

    The distance is `data.selection.distance`, measured on the logits that the loss needs anyway, without the end token
    and without a gradient. Weights are not normalised to mean 1 over the facts. This makes no difference under
    `normalization: step_weights`; under `step_count`, steps with small weights make smaller updates. A rank-based
    distance (`Surprisal`) is ranked among the base model's values for the kept facts, so that a fact's weight does not
    depend on the other facts in the step. Range: that of the inner raw weight. Cost: no pass; the distance of the
    step's target tokens. Source: ours; focal loss is `Online(Focal())`.

    Args:
        weighting: The function of the distance.

    Raises:
        InputError: If the inner weighting is itself `Online` or `Scheduled`, or needs all facts at once (`FLOW` without
            `tau`). A distance that needs answers is refused by a rule of `compatibility` before anything is read: a
            training step generates none.

    Example:
        >>> from lit_semantic_peft.semantics import Proximity
        >>> Online(Proximity()).raw(torch.tensor([0.0, 2.0])).tolist()  # before the first step
        [1.0, 1.0]
    """

    is_online = True

    def __init__(self, weighting: Weighting) -> None:
        require_plain("Online", weighting)
        if weighting.needs_all_facts:
            raise InputError("FLOW inside Online needs a fixed `tau`: the median of a step depends on its other facts.")
        self.weighting = weighting
        self.reference: Tensor | None = None

    @override
    def raw(self, distance: Tensor) -> Tensor:
        """1 for every fact: the weights are only known in the training step."""
        return torch.ones_like(distance)

    @override
    def prepare(self, distance: Distance, base_distance: FloatArray) -> None:
        """Stores the base model's distances of the kept facts if the distance is rank-based.

        Args:
            distance: The distance to measure in the steps.
            base_distance: float64 `(n,)`.
        """
        self.reference = torch.from_numpy(np.sort(base_distance)) if distance.is_rank_based else None

    @override
    def current(self, distance: Distance, outputs: TargetPass) -> Tensor:
        if self.weighting.needs_nll:
            return self.weighting.raw(Surprisal().measure(outputs).float())
        measured = distance.measure(outputs).float()
        if self.reference is not None:
            self.reference = self.reference.to(measured)
            below = torch.searchsorted(self.reference, measured) + torch.searchsorted(
                self.reference, measured, right=True
            )
            measured = MAX_DISTANCE * below / (2 * len(self.reference))
        return self.weighting.raw(measured.clamp(0.0, MAX_DISTANCE))
