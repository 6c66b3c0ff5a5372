"""The losses of a training step's facts, and what its own logits say of their weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_semantic_peft.models.objective import Outputs, mean_per_fact, nll_of, target_logits
from lit_semantic_peft.semantics.distances import Distance, TargetPass
from lit_semantic_peft.semantics.token_weights import TokenWeighting
from lit_semantic_peft.semantics.weightings import Weighting
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch


def losses_and_online_weights(
    model: nn.Module,
    batch: Batch,
    weighting: Weighting,
    token_weighting: TokenWeighting | None,
    distance: Distance,
    *,
    has_end: bool,
    outputs: Outputs | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Losses and online weights of a micro-batch, from one forward pass.

    Args:
        model: A `peft` model around a causal language model.
        batch: The facts.
        weighting: Its weights are given if it `is_online`.
        token_weighting: Which target tokens count; None for all alike, so that the losses are `fact_nll`.
        distance: The distance to measure for an online weighting.
        has_end: Whether each row's last target is the end token, which is part of the loss but of no distance.
        outputs: What `target_logits` gives for the batch; None to run it.

    Returns:
        float32 `(B,)` in nats per token, with a graph; and float32 `(B,)` without, None for a weighting that is not
        online.
    """
    logits, targets, hidden = target_logits(model, batch) if outputs is None else outputs
    losses = nll_of(logits, targets)
    if token_weighting is None and not weighting.is_online:
        return mean_per_fact(losses, batch.labels), None
    base: Any = model.get_base_model()  # type: ignore[operator]
    of_targets = TargetPass(
        logits=logits,
        hidden=hidden,
        targets=targets,
        row=(batch.labels != IGNORE_INDEX).nonzero()[:, 0],
        num_facts=len(batch),
        input_embeddings=base.get_input_embeddings().weight,
        output_embeddings=base.get_output_embeddings().weight,
    )
    is_end = _is_last_of_row(of_targets.row) if has_end else torch.zeros_like(targets, dtype=torch.bool)
    if token_weighting is not None:
        losses = token_weighting.token_loss(losses, of_targets, is_end)
    online = None
    if weighting.is_online:
        with torch.no_grad():
            online = weighting.current(distance, _detached(of_targets, ~is_end))
    return mean_per_fact(losses, batch.labels), online


def _is_last_of_row(row: Tensor) -> Tensor:
    is_last = torch.ones_like(row, dtype=torch.bool)
    is_last[:-1] = row[1:] != row[:-1]
    return is_last


def _detached(outputs: TargetPass, kept: Tensor) -> TargetPass:
    return replace(
        outputs,
        logits=outputs.logits.detach()[kept],
        hidden=None if outputs.hidden is None else outputs.hidden.detach()[kept],
        targets=outputs.targets[kept],
        row=outputs.row[kept],
    )
