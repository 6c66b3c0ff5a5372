"""The optimizer step: from the losses and weights of its facts to the gradient that the optimizer gets.

    loss      L = Σ w_i ℓ_i / S, over all facts of the step
    S         Σ w_i (`step_weights`), or the number of facts with w_i > 0 (`step_count`)
    gradient  (A·K / S) · g + gradients of the penalties

An adapter may add a term b_i to each fact's ℓ_i (the balance of experts), which is trained and not logged as loss.

g is the gradient that the backward passes leave: Lightning divides each micro-batch's Σ w_i ℓ_i by A =
`accumulate_grad_batches` (also in a partial last window), and the strategy averages over the K ranks. S is known only
when the step is complete, so the gradient is normalised then, and not the loss of a micro-batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import weight_normalizer
from lit_semantic_peft.training.own_gradient import sum_over_ranks
from lit_semantic_peft.training.penalties import adapter_penalty_gradient
from lit_semantic_peft.training.retain.penalty import RetainPenalty

if TYPE_CHECKING:
    from lit_semantic_peft.training.module import SemanticPeftModule

Normalization = Literal["step_weights", "step_count"]


def micro_batch_terms(
    nll: Tensor, weight: Tensor, normalization: Normalization, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a micro-batch adds to the step.

    Args:
        nll: ℓ_i, float32 `(B,)`, nats per token, with a graph.
        weight: w_i, float32 `(B,)`, ≥ 0.
        normalization: What S is.
        penalty: b_i, what the adapter's type adds to each ℓ_i, float32 `(B,)`, with a graph; None for nothing.

    Returns:
        Σ w_i (ℓ_i + b_i) with its graph, a scalar; and [Σ w_i ℓ_i, its part of S], float32 `(2,)`, without.
    """
    weighted_sum = (weight * nll).sum()
    trained = weighted_sum if penalty is None else weighted_sum + (weight * penalty).sum()
    return trained, torch.stack([weighted_sum.detach(), weight_normalizer(weight, normalization)])


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step logs.

    Attributes:
        loss: Σ w_i ℓ_i / S, nats per token; None where no fact counts.
        retain_kl: By log key, what `RetainPenalty.of_step` measured, nats per token; empty without a penalty.
        gradient_norm: Euclidean norm of the whole gradient, before clipping.
    """

    loss: float | None
    retain_kl: Mapping[str, Tensor]
    gradient_norm: Tensor


def finish_step(
    module: "SemanticPeftModule",
    terms: Tensor,
    parameters: Sequence[nn.Parameter],
    retain: RetainPenalty | None,
    retained_means: Tensor | None = None,
) -> StepResult | None:
    """Turns the accumulated gradient into that of the step's loss and penalties. A collective.

    Args:
        module: After the last backward pass of the step.
        terms: This rank's sum of what `micro_batch_terms` gives, float32 `(2,)`.
        parameters: The trained parameters; their gradients are changed.
        retain: The penalty of what is retained; None for none.
        retained_means: Of `with_penalty`, where the retained texts ran in the step's last micro-batch.

    Returns:
        None where nothing counts: without gradients the optimizer skips its parameters.

    Raises:
        InputError: On all ranks alike, if the loss of the step is not finite.
    """
    trainer = module.trainer
    weighted_sum, normalizer = sum_over_ranks(trainer, terms).tolist()
    if normalizer == 0 and retain is None:
        for parameter in parameters:
            parameter.grad = None
        return None
    loss = weighted_sum / normalizer if normalizer else weighted_sum
    _require_finite(loss, normalizer, trainer.global_step + 1)

    average = getattr(trainer.strategy, "average_gradients", None)
    if average is not None:  # `ShardedBaseStrategy`; other strategies averaged in the backward pass
        average(parameters)
    # Where no fact counts the gradients are zero, and only the penalties remain.
    factor = trainer.accumulate_grad_batches * trainer.world_size / normalizer if normalizer else 0.0
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)

    # Penalties have normalisers of their own.
    _add(parameters, adapter_penalty_gradient(module.model, parameters))
    retain_kl: Mapping[str, Tensor] = {}
    if retain is not None:
        retain_kl, retain_gradient = retain.of_step(trainer, module.model, parameters, retained_means)
        _add(parameters, retain_gradient)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return StepResult(loss if normalizer else None, retain_kl, norm)


def _require_finite(loss: float, normalizer: float, step: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(normalizer)):
        raise InputError(
            f"`train/loss` is {loss} at optimizer step {step}; training cannot go on. Lower the "
            "learning rate, clip gradients (`trainer.gradient_clip_val: 1.0`), or use "
            "`model.base_model.dtype: float32`."
        )


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad += gradient
