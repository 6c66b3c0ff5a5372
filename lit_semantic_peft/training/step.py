"""The optimizer step: from the losses and weights of its facts to the gradient that the optimizer gets.

    loss      L = Σ w_i ℓ_i / S, over all facts of the step
    S         Σ w_i (`step_weights`), or the number of facts with w_i > 0 (`step_count`)
    gradient  (A·K / S) · g + gradients of the penalties

g is the gradient that the backward passes leave: Lightning divides each micro-batch's Σ w_i ℓ_i by A =
`accumulate_grad_batches` (also in a partial last window), and the strategy averages over the K ranks. S is known only
when the step is complete, so the gradient is normalised then, and not the loss of a micro-batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import weight_normalizer
from lit_semantic_peft.training.own_gradient import sum_over_ranks

Normalization = Literal["step_weights", "step_count"]


def micro_batch_terms(nll: Tensor, weight: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """What a micro-batch adds to the step.

    Args:
        nll: ℓ_i, float32 `(B,)`, nats per token, with a graph.
        weight: w_i, float32 `(B,)`, ≥ 0.
        normalization: What S is.

    Returns:
        Σ w_i ℓ_i with its graph, a scalar; and [Σ w_i ℓ_i, its part of S], float32 `(2,)`, without.
    """
    weighted_sum = (weight * nll).sum()
    return weighted_sum, torch.stack([weighted_sum.detach(), weight_normalizer(weight, normalization)])


@dataclass(frozen=True, slots=True)
class StepTotals:
    """The sums of an optimizer step over all its facts.

    Attributes:
        weighted_sum: Σ w_i ℓ_i, nats per token.
        normalizer: S; 0 where no fact counts.
    """

    weighted_sum: float
    normalizer: float

    @classmethod
    def over_ranks(cls, trainer: Trainer, terms: Tensor) -> "StepTotals":
        """Adds the ranks up. A collective.

        Args:
            trainer: The trainer.
            terms: This rank's sum of what `micro_batch_terms` gives, float32 `(2,)`.
        """
        return cls(*sum_over_ranks(trainer, terms).tolist())

    @property
    def loss(self) -> float:
        """Σ w_i ℓ_i / S, nats per token."""
        return self.weighted_sum / self.normalizer if self.normalizer else self.weighted_sum

    def require_finite(self, step: int) -> None:
        """Ends a training that cannot go on, on all ranks alike.

        Args:
            step: Number of the optimizer step, from 1.

        Raises:
            InputError: If the loss is not finite.
        """
        if not (math.isfinite(self.weighted_sum) and math.isfinite(self.normalizer)):
            raise InputError(
                f"`train/loss` is {self.loss} at optimizer step {step}; training cannot go on. Lower the "
                "learning rate, clip gradients (`trainer.gradient_clip_val: 1.0`), or use `dtype: float32`."
            )


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Lets the optimizer skip a step in which no fact counts.

    Args:
        parameters: What trains.
    """
    for parameter in parameters:
        parameter.grad = None


def normalize_gradients(trainer: Trainer, parameters: Sequence[nn.Parameter], normalizer: float) -> None:
    """Turns the accumulated gradient into that of Σ w_i ℓ_i / S: times A·K / S, 0 where no fact counts.

    Args:
        trainer: The trainer.
        parameters: What trains.
        normalizer: S.
    """
    average = getattr(trainer.strategy, "average_gradients", None)
    if average is not None:  # `ShardedBaseStrategy`; other strategies averaged in the backward pass
        average(parameters)
    factor = trainer.accumulate_grad_batches * trainer.world_size / normalizer if normalizer else 0.0
    torch._foreach_mul_(_gradients(parameters), factor)


def add_to_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Adds the gradient of a penalty, which has a normaliser of its own.

    Args:
        parameters: What trains; those without gradient stay so.
        gradients: One for each, None for zero.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad += gradient


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of the whole gradient.

    Args:
        parameters: What trains.
    """
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(_gradients(parameters))))


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
