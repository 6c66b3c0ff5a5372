"""Which experts the facts choose, and the interference between facts that share experts or do not."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.adapters.balance import routed_layers
from lit_semantic_peft.adapters.knowledge_moe import RoutedLinear
from lit_semantic_peft.interference.per_fact_gradients import usable
from lit_semantic_peft.models.prompts import of_batch
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch


def expert_shares(model: PeftModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """How often each fact's tokens choose each expert, without the router's noise.

    Args:
        model: A model with a `KnowledgeMoEConfig`; not changed.
        batches: The facts.

    Returns:
        By layer, float32 `(k, E)` on the CPU, in the order of the batches' rows: shares of the choices of a fact's
        tokens but the last, which add up to 1; 0 where its prompt names nothing.
    """
    layers = dict(routed_layers(model))
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str, layer: RoutedLinear) -> object:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            rows = layer.rows(arguments[0])
            _, is_chosen = layer.gates(arguments[0], rows.anchor)
            counts = (is_chosen & rows.routed_tokens(is_chosen.shape[1])[..., None]).sum(dim=1).float()
            found[name].append((counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).cpu())

        return layer.register_forward_hook(hook)

    handles = [note(name, layer) for name, layer in layers.items()]
    try:
        with undisturbed(model), torch.no_grad():
            for batch in batches:
                batch = usable(batch, model)
                ids, mask = batch.input_ids[:, :-1], batch.attention_mask[:, :-1]
                with of_batch(model, batch):
                    model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    return {name: torch.cat(parts) for name, parts in found.items()}


def have_same_experts(shares: Sequence[Tensor]) -> NDArray[np.bool_]:
    """Which pairs of facts choose most often the same expert in at least half of the layers.

    Args:
        shares: Of each layer, `(k, E)`.

    Returns:
        bool `(k, k)`.

    Example:
        >>> have_same_experts([torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.0, 1.0]])]).tolist()
        [[True, True, False], [True, True, False], [False, False, True]]
    """
    most = torch.stack([one.argmax(dim=1) for one in shares], dim=1).numpy()
    is_same: NDArray[np.bool_] = (most[:, None] == most[None, :]).mean(axis=2) >= 0.5
    return is_same


def effective_experts(loads: Sequence[Tensor]) -> float:
    """Exp of the entropy of the experts' load, mean over layers.

    Args:
        loads: Of each layer, shares `(E,)` that add up to 1.

    Example:
        >>> effective_experts([torch.tensor([0.5, 0.5, 0.0, 0.0])])
        2.0
    """
    return float(torch.stack([torch.special.entr(load).sum().exp() for load in loads]).mean())
