"""What is added to the loss beside the facts: the penalty of retained facts, and that of the adapter's type."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import target_logits, traits_of
from lit_semantic_peft.models.compiled import eagerly
from lit_semantic_peft.models.objective import predicting_mask
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training.own_gradient import flattened, sum_over_ranks, unflattened
from lit_semantic_peft.training.rotation import rotating_choice

logger = logging.getLogger(__name__)


def retain_kl(model: PeftModel, batch: Batch) -> Tensor:
    """Mean over a fact's target positions of KL(p_base ‖ p_adapter), the base model being the disabled adapter.

    Range: [0, ∞) nats per token; 0 while the adapter changes nothing. The base model's side carries no gradient. Cost:
    two forward passes, and one backward pass if it is differentiated. Source: the forward direction of knowledge
    distillation (Hinton et al. 2015, arXiv 1503.02531) at temperature 1, with the base model as teacher; which
    positions count, and their mean per fact, is our reading.

    Args:
        model: The model with its adapter, in evaluation mode: dropout would be a divergence of its own.
        batch: The facts.

    Returns:
        float32 `(B,)`; 0 for a row without target.
    """
    with torch.no_grad(), model.disable_adapter():
        base = target_logits(model, batch)[0].float().log_softmax(dim=-1)
    adapted = target_logits(model, batch)[0].float().log_softmax(dim=-1)
    per_position = F.kl_div(adapted, base, reduction="none", log_target=True).sum(dim=-1)
    mask = predicting_mask(batch.labels)
    per_fact = torch.zeros(len(batch), device=per_position.device)
    per_fact = per_fact.index_add(0, mask.nonzero()[:, 0], per_position)
    return per_fact / mask.sum(dim=1).clamp(min=1)


class RetainPenalty:
    """λ times the mean `retain_kl` over some of the retained facts, one seeded choice per optimizer step.

    Its normaliser is the number of these facts, so it depends neither on the loss weights nor on how the step is
    split. Cost per optimizer step: two forward passes and one backward pass of the chosen facts, shared out
    over the ranks.

    Args:
        weight: λ > 0.
        batch_size: Facts per optimizer step over all ranks, ≥ 1; all of them where there are fewer.
        retained: Fact indices whose answers must not change.
        seed: Of the choice.

    Raises:
        InputError: If nothing is retained.

    Example:
        >>> penalty = RetainPenalty(1.0, batch_size=2, retained=[3, 5, 8, 9], seed=0)
        >>> sorted(penalty.rows(step=0) + penalty.rows(step=1))
        [3, 5, 8, 9]
    """

    def __init__(self, weight: float, batch_size: int, retained: Sequence[int], seed: int) -> None:
        if not retained:
            raise InputError(
                f"`retain_weight` is {weight:g}, but there is nothing to retain. Add lines with "
                '"split": "retain" for what must not change, set `retain_known: true` with a `KnownFilter`, or set '
                "`retain_weight: 0`."
            )
        self.weight = weight
        self.retained = list(retained)
        self.batch_size = min(batch_size, len(retained))
        self.seed = seed

    def rows(self, step: int) -> list[int]:
        """Fact indices of an optimizer step, see `rotating_choice`.

        Args:
            step: Number of the optimizer step, from 0.
        """
        return rotating_choice(self.retained, self.batch_size, step, self.seed)

    def gradient(
        self,
        model: PeftModel,
        parameters: Sequence[nn.Parameter],
        batches: Sequence[Batch],
        precision: Callable[[], AbstractContextManager[None]],
    ) -> tuple[Tensor, Tensor]:
        """One rank's share of the mean and of its gradient; the shares of all ranks add up to the whole.

        Evaluated in evaluation mode, so no random number is drawn; `.grad` is not touched.

        Args:
            model: The model with its adapter.
            parameters: The trained parameters.
            batches: The rank's share of the optimizer step's facts; may be empty.
            precision: Opens the context of a forward pass, for autocast.

        Returns:
            Σ `retain_kl` / `batch_size`, without λ, a scalar, and λ times its gradient, `(P,)`.
        """
        device = parameters[0].device
        mean = torch.zeros((), device=device)
        gradient = torch.zeros(sum(parameter.numel() for parameter in parameters), device=device)
        with undisturbed(model):
            for batch in batches:
                with precision():
                    share = retain_kl(model, batch.to(device)).sum() / self.batch_size
                gradient += flattened(torch.autograd.grad(share, parameters, allow_unused=True), parameters)
                mean += share.detach()
        return mean, self.weight * gradient

    def of_step(
        self, trainer: Trainer, data: KnowledgeDataModule, model: PeftModel, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]]:
        """The penalty of the coming optimizer step, each rank a share of its facts. A collective.

        Args:
            trainer: The trainer.
            data: Gives the facts, in batches of its `micro_batch_size`.
            model: The model with its adapter.
            parameters: The trained parameters.

        Returns:
            Mean `retain_kl` over all ranks, without λ, nats per token, a scalar; and λ times its gradient, one tensor
            for each parameter.
        """
        rows = self.rows(trainer.global_step)[trainer.global_rank :: trainer.world_size]
        batches = data.training_batches(rows, data.batches.micro_batch_size, with_end=False)
        with eagerly():
            mean, gradient = self.gradient(model, parameters, batches, trainer.precision_plugin.train_step_context)
        total = sum_over_ranks(trainer, torch.cat([mean[None], gradient]))
        return total[0], unflattened(total[1:], parameters)


def retained_rows(prepared: PreparedFacts, *, with_known: bool) -> list[int]:
    """Facts whose answers a training retains.

    Args:
        prepared: The facts.
        with_known: Whether to include facts that are not trained because the base model knows them already.

    Returns:
        Fact indices, ascending.
    """
    is_known = prepared.scored.is_known & ~prepared.is_trained
    return [
        row
        for row, fact in enumerate(prepared.facts)
        if fact.split == "retain" or (with_known and fact.split == "inject" and is_known[row])
    ]


def retain_penalty(
    weight: float, batch_size: int, retained: Sequence[int], seed: int, *, with_known: bool
) -> RetainPenalty | None:
    """The penalty of a training; None, with a warning, if only known facts were asked for and there are none.

    Args:
        weight: λ > 0.
        batch_size: Facts per optimizer step.
        retained: Of `retained_rows`.
        seed: Of the choice.
        with_known: Whether known facts were asked for.

    Raises:
        InputError: If nothing is retained, and no known facts were asked for.
    """
    if with_known and not retained:
        logger.warning("`retain_weight` does nothing: no fact was dropped as known, none has split `retain`")
        return None
    return RetainPenalty(weight, batch_size, retained, seed)


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
