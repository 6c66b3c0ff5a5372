"""Keys of facts: a layer's input where the answer is predicted, and the second moment of its inputs over a corpus."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference.per_fact_gradients import usable
from lit_semantic_peft.models.objective import predicting_mask
from lit_semantic_peft.models.peft_traits import num_virtual_tokens
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch


def fact_keys(model: nn.Module, batches: Sequence[Batch], layer: str) -> Tensor:
    """The key of each fact: a layer's input at the last token of the prompt, which predicts the target's first token.

    Args:
        model: A causal language model of transformers or a `peft` model around one; not changed.
        batches: The facts, each with a target.
        layer: Name of the module whose input is the key, as in `model.named_modules()`. A unique end of the name
            suffices (`layers.12.mlp.down_proj`).

    Returns:
        float32 `(k, d)` on the CPU, facts in the order of the batches' rows.

    Raises:
        InputError: If no module or several are named so.
    """
    keys = []
    for batch, value in _inputs(model, batches, layer):
        first = predicting_mask(batch.labels).int().argmax(dim=1)
        keys.append(value[torch.arange(len(batch), device=value.device), first].float().cpu())
    return torch.cat(keys)


def key_second_moment(model: nn.Module, batches: Sequence[Batch], layer: str) -> tuple[Tensor, int]:
    """Σ k kᵀ over all tokens of a corpus, k the input of a layer.

    Args:
        model: As in `fact_keys`.
        batches: The corpus. Labels are ignored, padding is left out.
        layer: As in `fact_keys`.

    Returns:
        float64 `(d, d)` on the CPU, and the number of tokens.

    Raises:
        InputError: If no module or several are named so.
    """
    total, count = torch.zeros(0, 0, dtype=torch.float64), 0
    for batch, value in _inputs(model, batches, layer):
        tokens = value[batch.attention_mask.bool()].float()
        moment = (tokens.T @ tokens).double().cpu()
        total = total + moment if count else moment
        count += len(tokens)
    return total, count


def _inputs(model: nn.Module, batches: Sequence[Batch], layer: str) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the layer's input `(B, T, d)`, virtual tokens left out."""
    module = _named(model, layer)
    for batch in batches:
        with undisturbed(model), torch.no_grad(), _captured(module) as seen:
            batch = usable(batch, model)
            # All tokens, including the last ones, which predict no target.
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        yield batch, seen[0][:, num_virtual_tokens(model) :]


@contextmanager
def _captured(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def _named(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found = [name for name in modules if name == layer or name.endswith(f".{layer}")]
    if len(found) != 1:
        some = ", ".join(found[:5]) or "none; names are, for example, layers.0.mlp.down_proj"
        raise InputError(f"`layer` {layer!r} must name one module of the model, found {len(found)}: {some}")
    return modules[found[0]]
