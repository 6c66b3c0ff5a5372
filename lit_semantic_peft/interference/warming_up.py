"""Some training steps of a throw-away adapter: before training there is hardly any interference to measure."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.objective import fact_nll
from lit_semantic_peft.tokens import Batch


def warm_up(
    model: nn.Module,
    batches: Sequence[Batch],
    steps: int,
    learning_rate: float = 1e-3,
    on_step: Callable[[int, float], object] | None = None,
) -> list[float]:
    """Trains the trainable parameters for some steps with AdamW on the unweighted mean of `fact_nll`.

    A plain loop with one optimizer step per micro-batch, cycling through the micro-batches. Changes the trainable
    parameters and leaves their `.grad` None. Restores the modules' modes; random numbers (dropout) are drawn.

    Args:
        model: A causal language model with an adapter that may be thrown away.
        batches: The facts in micro-batches; moved to the model's device.
        steps: Number of optimizer steps, ≥ 0.
        learning_rate: AdamW's learning rate, constant.
        on_step: Called after each step with the number of steps done and the loss, for a progress bar.

    Returns:
        The loss before each step, nats per token.

    Raises:
        InputError: If a loss is not finite, or a setting is out of range.
        ValueError: If there is nothing to train or nothing to train on.
    """
    if steps < 0:
        raise InputError(f"`warmup_steps` must be at least 0, got {steps}.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"`learning_rate` must be a finite number above 0, got {learning_rate!r}.")
    if not steps:
        return []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters or not batches:
        raise ValueError(f"nothing to warm up: {len(parameters)} trainable parameters, {len(batches)} batches")
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    losses: list[float] = []
    with modes_restored(model), torch.enable_grad():
        model.train()
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = fact_nll(model, batches[step % len(batches)].to(device)).mean()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"warm-up: the loss is {losses[-1]} before step {step + 1} at `learning_rate` {learning_rate:g}. "
                    "Lower it, or find the fact whose loss under the base model is not finite."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, losses[-1])
        optimizer.zero_grad(set_to_none=True)
    return losses
