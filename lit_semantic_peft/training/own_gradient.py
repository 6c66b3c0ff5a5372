"""Gradients that a method computes beside the loss: one vector each, which ranks can add up in one go."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_semantic_peft.errors import InputError


def flattened(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients one behind the other, zeros where a parameter has none.

    Args:
        gradients: One per parameter.
        parameters: What they belong to, P numbers in all.

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
        parameters: What it belongs to.

    Returns:
        One tensor per parameter, of its shape and type.
    """
    parts = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter).to(parameter.dtype) for part, parameter in zip(parts, parameters, strict=True)]


def refuse_loss_scaling(trainer: Trainer, name: str) -> None:
    """Refuses float16 for a method that computes gradients of its own, or reads those of the loss.

    Args:
        trainer: The trainer.
        name: Of the argument or class.

    Raises:
        InputError: Saying what to use instead.
    """
    if trainer.precision == "16-mixed":
        raise InputError(
            f"`{name}` works on gradients, which under `precision: 16-mixed` are those of a scaled loss and may "
            "underflow or overflow. Use `bf16-mixed` or `32-true`."
        )


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks. A collective.

    Args:
        trainer: The trainer.
        value: This rank's, of the same shape on all.
    """
    total = trainer.strategy.reduce(value, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total
