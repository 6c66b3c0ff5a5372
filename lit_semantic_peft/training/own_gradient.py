"""Gradients that a method computes beside the loss: one vector each, which ranks can sum in one collective."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn


def flattened(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients concatenated to one vector, zeros where a parameter has none.

    Args:
        gradients: One per parameter.
        parameters: Their parameters, P numbers in all.

    Returns:
        float32 `(P,)`, detached.

    Example:
        >>> parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1, 1))]
        >>> flattened([None, torch.full((1, 1), 3.0)], parameters).tolist()
        [0.0, 0.0, 3.0]
    """
    return torch.cat(
        [
            torch.zeros(parameter.numel(), device=parameter.device)
            if gradient is None
            else gradient.detach().flatten().float()
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
    )


def unflattened(vector: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The inverse of `flattened`.

    Args:
        vector: `(P,)`.
        parameters: Those of `flattened`.

    Returns:
        One tensor per parameter, of its shape and type.
    """
    parts = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter).to(parameter.dtype) for part, parameter in zip(parts, parameters, strict=True)]


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks. A collective.

    Args:
        trainer: The trainer.
        value: This rank's, of the same shape on all. It is not changed.
    """
    total = trainer.strategy.reduce(value.clone(), reduce_op="sum")  # Lightning writes the sum into what it is given
    assert isinstance(total, Tensor)
    return total
