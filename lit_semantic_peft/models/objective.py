"""What a fact costs: the loss of each fact, and how one optimizer step weighs them.

Only positions that predict a target token are projected to the vocabulary; for short facts that is most of the memory
and a third of the time. The last token of the longest row is not run at all: nothing is predicted from it.
"""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.models.frozen_layers import FrozenLayers
from lit_semantic_peft.models.peft_traits import num_virtual_tokens
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch


def predicting_mask(labels: Tensor) -> Tensor:
    """Input positions whose output predicts a target token: the one before each labelled position.

    Args:
        labels: int64 `(B, T)`, -100 where there is no target.

    Returns:
        bool `(B, T − 1)`: nothing is predicted from the last position.
    """
    return labels[:, 1:] != IGNORE_INDEX


def target_logits(
    model: nn.Module,
    batch: Batch,
    *,
    frozen: FrozenLayers | None = None,
    **forward_arguments: Any,
) -> tuple[Tensor, Tensor, Any]:
    """Logits at the predicting positions only.

    Args:
        model: A causal language model of transformers, or a `peft` model around one. `labels` are never passed.
        batch: The facts.
        frozen: Gives the input of the lowest layer that is trained, so that only the layers from there on run.
        forward_arguments: Further arguments of the model's forward (for example `output_hidden_states`).

    Returns:
        Logits `(N, V)`, targets int64 `(N,)` in row-major order of the N target positions, and the model's output.
    """
    kept = predicting_mask(batch.labels)
    targets = batch.labels[:, 1:][kept]
    inputs = {"input_ids": batch.input_ids[:, :-1], "attention_mask": batch.attention_mask[:, :-1]}
    if frozen is not None:
        del inputs["input_ids"]
        inputs["inputs_embeds"] = frozen.hidden(batch)[:, :-1]
    virtual = num_virtual_tokens(model)
    kept = F.pad(kept, (virtual, 0)) if virtual else kept
    if _takes_logits_to_keep(model):
        forward_arguments["logits_to_keep"] = kept
    with frozen.upper_layers_only() if frozen is not None else nullcontext():
        output = model(**inputs, **{"use_cache": False, **forward_arguments})
    logits = output.logits if output.logits.dim() == 2 else output.logits[kept]
    return logits, targets, output


def token_nll(model: nn.Module, batch: Batch, *, frozen: FrozenLayers | None = None) -> Tensor:
    """Negative log-likelihood of each target token.

    Args:
        model: A causal language model.
        batch: The facts.
        frozen: As in `target_logits`.

    Returns:
        float32 `(B, T)` in nats per token, 0 where there is no target.
    """
    logits, targets, _ = target_logits(model, batch, frozen=frozen)
    return _token_nll_of(logits, targets, batch.labels)


def fact_nll(model: nn.Module, batch: Batch, *, frozen: FrozenLayers | None = None) -> Tensor:
    """Mean negative log-likelihood of each fact's target tokens: ℓ_i of the objective.

    Args:
        model: A causal language model.
        batch: The facts.
        frozen: As in `target_logits`.

    Returns:
        float32 `(B,)` in nats per token; 0 for a row without target.
    """
    logits, targets, _ = target_logits(model, batch, frozen=frozen)
    return fact_nll_of(logits, targets, batch.labels)


def fact_nll_of(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """`fact_nll` from logits that are there already.

    Args:
        logits: float `(N, V)` at the predicting positions.
        targets: int64 `(N,)`.
        labels: int64 `(B, T)`.

    Returns:
        float32 `(B,)` in nats per token; 0 for a row without target.
    """
    count = (labels != IGNORE_INDEX).sum(dim=1)
    return _token_nll_of(logits, targets, labels).sum(dim=1) / count.clamp(min=1)


def _token_nll_of(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    # Graph-connected also when no row has a target, so that backward finds every adapter on every rank.
    empty = torch.zeros(labels.shape, device=losses.device) + losses[:0].sum()
    return empty.masked_scatter(labels != IGNORE_INDEX, losses)


def weight_normalizer(loss_weight: Tensor, normalization: str) -> Tensor:
    """What one micro-batch adds to the normaliser S of the optimizer step.

    Args:
        loss_weight: float `(B,)`, ≥ 0.
        normalization: `step_weights` (S = Σ w_i) or `step_count` (S = number of facts with w_i > 0).

    Returns:
        float32 scalar.
    """
    return (loss_weight if normalization == "step_weights" else (loss_weight > 0).float()).sum()


def _takes_logits_to_keep(model: nn.Module) -> bool:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
