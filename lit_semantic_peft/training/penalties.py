"""What the adapter's type adds to the loss beside the facts."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

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
