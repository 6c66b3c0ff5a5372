"""Loss weights from the current model's predictions, computed from the training step's own logits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.frozen_layers import FrozenLayers
from lit_semantic_peft.models.objective import fact_nll_of, target_logits
from lit_semantic_peft.semantics.distances import Distance, Surprisal, TargetPass
from lit_semantic_peft.semantics.shaping import require_plain
from lit_semantic_peft.semantics.table import FloatArray
from lit_semantic_peft.semantics.weightings import MAX_DISTANCE, Weighting
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch


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


def nll_and_online_weight(
    model: nn.Module,
    batch: Batch,
    weighting: Weighting,
    distance: Distance,
    *,
    has_end: bool,
    frozen: FrozenLayers | None = None,
) -> tuple[Tensor, Tensor]:
    """`fact_nll` and the online weights of a micro-batch, from one forward pass.

    Args:
        model: A `peft` model around a causal language model.
        batch: The facts.
        weighting: One that `is_online`.
        distance: The distance to measure.
        has_end: Whether each row's last target is the end token, which is part of the loss but of no distance.
        frozen: As in `target_logits`.

    Returns:
        float32 `(B,)` with a graph, and float32 `(B,)` without.
    """
    base: Any = model.get_base_model()  # type: ignore[operator]
    projection = base.get_output_embeddings()
    logits, targets, hidden = target_logits(model, batch, frozen=frozen)
    nll = fact_nll_of(logits, targets, batch.labels)
    with torch.no_grad():
        row = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
        kept = torch.ones_like(row, dtype=torch.bool)
        if has_end:
            kept[:-1] = row[1:] == row[:-1]
            kept[-1:] = False
        outputs = TargetPass(
            logits=logits.detach()[kept],
            hidden=None if hidden is None else hidden.detach()[kept],
            targets=targets[kept],
            row=row[kept],
            num_facts=len(batch),
            input_embeddings=base.get_input_embeddings().weight,
            output_embeddings=projection.weight,
        )
        return nll, weighting.current(distance, outputs)
