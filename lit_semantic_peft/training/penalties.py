"""What the adapter's type adds to the loss: of an optimizer step, and of each fact."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.adapters.balance import balance_of
from lit_semantic_peft.models import traits_of


def adapter_penalty_gradient(model: PeftModel, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Gradient of the penalty that the adapter's type has, such as AdaLoRA's orthogonality; independent of the facts.

    Args:
        model: The model with its adapter.
        parameters: The trained parameters.

    Returns:
        One for each parameter, None for zero.
    """
    penalty = traits_of(model).penalty(model)
    if penalty is None:
        return [None] * len(parameters)
    return list(torch.autograd.grad(penalty, parameters, allow_unused=True))


def fact_penalty(model: PeftModel, weight: Tensor) -> Tensor | None:
    """What the adapter's type adds to the loss of each fact of a micro-batch, such as the balance of experts.

    Args:
        model: The model with its adapter, after the forward pass of the micro-batch.
        weight: w_i, float32 `(B,)`, ≥ 0.

    Returns:
        float32 `(B,)` with a graph, without unit; None for nothing.
    """
    return balance_of(model, weight) if traits_of(model).has_experts else None
