"""The objective: the loss of each fact, and how one optimizer step weighs them.

Only positions that predict a target token are projected to the vocabulary; for short facts that is most of the memory
and a third of the time. The last token of the longest row is not run at all: nothing is predicted from it. With a
`PrefixTree` no row's last token is, and tokens that rows share from their beginning run once.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_semantic_peft.models.frozen_layers import FrozenLayers
from lit_semantic_peft.models.peft_traits import num_virtual_tokens
from lit_semantic_peft.models.prompts import of_batch
from lit_semantic_peft.models.tree_attention import tree_inputs
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch, PrefixTree

Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""What `target_logits` gives: logits `(N, V)`, targets `(N,)` and hidden states `(N, H)`."""


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
    tree: PrefixTree | None = None,
    **forward_arguments: Any,
) -> Outputs:
    """Logits at the predicting positions only.

    The model's own forward runs, and the input of its output head is cut to the predicting positions. So whatever the
    architecture does to its logits (soft-capping, scaling) is its own code. A model whose head is not found, or is
    called on something else than one row of positions per fact, gives all logits, from which those are taken.

    Args:
        model: A causal language model of transformers, or a `peft` model around one. `labels` are never passed.
        batch: The facts.
        frozen: Gives the input of the lowest layer that is trained, so that only the layers from there on run.
        tree: Of the batch (`prefix_tree`), which runs in its place where `FastWays.prefix_tree` says that the model
            takes it. Same logits, but for rounding.
        forward_arguments: Further arguments of the model's forward (for example a cache).

    Returns:
        Logits `(N, V)`, targets int64 `(N,)` in row-major order of the N target positions, and the hidden states
        `(N, H)` that the output head projected; None if the head's input was not seen.
    """
    kept = predicting_mask(batch.labels)
    targets = batch.labels[:, 1:][kept]
    tokens = {"input_ids": batch.input_ids} if frozen is None else {"inputs_embeds": frozen.hidden(batch)}
    ((name, values),) = tokens.items()
    repeated: Tensor | None = None
    if tree is None:
        inputs = {name: values[:, :-1], "attention_mask": batch.attention_mask[:, :-1]}
        virtual = num_virtual_tokens(model)
        kept = F.pad(kept, (virtual, 0)) if virtual else kept
        shape, places = kept.shape, kept.flatten().nonzero()[:, 0]
    else:
        inputs = {name: values[tree.row, tree.depth], **tree_inputs(model, tree)}
        shape, (places, repeated) = tree.row.shape, tree.projected
    upper_layers = frozen.upper_layers_only() if frozen is not None else nullcontext()
    with of_batch(model, batch), upper_layers, _head_projects_only(model, shape, places) as projected:
        logits = model(**inputs, **{"use_cache": False, **forward_arguments}).logits
    logits = logits.flatten(end_dim=-2)
    if not (projected and len(logits) == len(places)):
        logits = logits[places]
    hidden = projected[-1] if projected else None
    if repeated is not None:
        logits, hidden = logits[repeated], None if hidden is None else hidden[repeated]
    return logits, targets, hidden


def token_nll(
    model: nn.Module, batch: Batch, *, frozen: FrozenLayers | None = None, tree: PrefixTree | None = None
) -> Tensor:
    """Negative log-likelihood of each target token.

    Args:
        model: A causal language model.
        batch: The facts.
        frozen: As in `target_logits`.
        tree: As in `target_logits`.

    Returns:
        float32 `(B, T)` in nats per token, 0 where there is no target.
    """
    logits, targets, _ = target_logits(model, batch, frozen=frozen, tree=tree)
    return _at_targets(nll_of(logits, targets), batch.labels)


def fact_nll(
    model: nn.Module, batch: Batch, *, frozen: FrozenLayers | None = None, tree: PrefixTree | None = None
) -> Tensor:
    """Mean negative log-likelihood of each fact's target tokens: ℓ_i of the objective.

    Args:
        model: A causal language model.
        batch: The facts.
        frozen: As in `target_logits`.
        tree: As in `target_logits`.

    Returns:
        float32 `(B,)` in nats per token; 0 for a row without target.
    """
    logits, targets, _ = target_logits(model, batch, frozen=frozen, tree=tree)
    return mean_per_fact(nll_of(logits, targets), batch.labels)


def nll_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihoods from logits that are there already.

    Args:
        logits: float `(N, V)`.
        targets: int64 `(N,)`.

    Returns:
        float32 `(N,)`, nats.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def mean_per_fact(losses: Tensor, labels: Tensor) -> Tensor:
    """Mean over each fact's target tokens.

    Args:
        losses: float32 `(N,)` of the target tokens, in row-major order.
        labels: int64 `(B, T)`.

    Returns:
        float32 `(B,)`; 0 for a row without target.
    """
    count = (labels != IGNORE_INDEX).sum(dim=1)
    return _at_targets(losses, labels).sum(dim=1) / count.clamp(min=1)


def _at_targets(losses: Tensor, labels: Tensor) -> Tensor:
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


@contextmanager
def _head_projects_only(model: Any, shape: torch.Size, places: Tensor) -> Iterator[list[Tensor]]:
    """Within the block the output head receives some positions as one row `(1, N, H)`.

    Args:
        model: As in `target_logits`.
        shape: `(B, T)` of the positions that the model runs.
        places: int64 `(N,)`, which of them, counted row by row.

    Yields:
        The hidden states `(N, H)` of each call that was cut.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    projected: list[Tensor] = []

    def cut(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not arguments or arguments[0].dim() != 3 or arguments[0].shape[:2] != shape:
            return None
        hidden = arguments[0].flatten(end_dim=1)[places.to(arguments[0].device)]
        projected.append(hidden)
        return hidden[None], *arguments[1:]

    # Before all other hooks, so that they too see what is projected.
    handle = None if head is None else head.register_forward_pre_hook(cut, prepend=True)
    try:
        yield projected
    finally:
        if handle is not None:
            handle.remove()
