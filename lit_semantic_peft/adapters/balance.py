"""Keeps the experts of a `KnowledgeMoEConfig` equally busy: a term of each fact's loss, and the load that it reads.

For a fact i with tokens t, over the layers l and experts e of the adapter,

    b_i = E · mean_l Σ_e (f_le − 1/E) · mean_t G_lte,   f_le = share of layer l's choices on e in the step before

It is the auxiliary loss of sparse experts (Fedus et al. 2022, Switch Transformers, equation 4), whose load is that of
the step before and not of the same tokens, so that it is a sum over facts. 1/E is taken off, which changes no gradient
but that of even loads: it is zero, and no rounding that AdamW would make a step of.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.adapters.by_names import routing_of
from lit_semantic_peft.adapters.knowledge_moe import RoutedLinear


def balance_of(model: PeftModel, weight: Tensor) -> Tensor | None:
    """β · b_i of the rows of the last training pass; notes their choices for the load of the coming step.

    Args:
        model: A model with experts, in training mode, after its forward pass.
        weight: Loss weight of each row, float `(B,)`; rows without weight count for no load.

    Returns:
        float32 `(B,)` with a graph, without unit; None where no layer was run, or β is 0.
    """
    notes, routing_of(model).notes = routing_of(model).notes, []
    terms = []
    for layer, probability, choices in notes:
        assert isinstance(layer, RoutedLinear)
        counted = (choices * (weight > 0)[:, None].to(choices.device)).sum(dim=0)
        layer.choices += counted.double().cpu()
        excess = layer.num_experts * (layer.load - 1 / layer.num_experts)
        terms.append((probability * excess.to(probability.device)).sum(dim=1))
    factor = float(model.active_peft_config.balance)
    return factor * torch.stack(terms).mean(dim=0) if terms and factor else None


def end_step(model: PeftModel) -> None:
    """Makes the load of the optimizer step that ends, over all processes, that of the coming one. A collective.

    Args:
        model: A model with experts.
    """
    layers = [layer for _, layer in routed_layers(model)]
    counts = torch.stack([layer.choices for layer in layers])
    if dist.is_available() and dist.is_initialized():
        on_device = counts.to(next(model.parameters()).device)
        dist.all_reduce(on_device)
        counts = on_device.cpu()
    for layer, count in zip(layers, counts, strict=True):
        if count.sum() > 0:  # no row named anything: the load stays what it was
            layer.load = (count / count.sum()).float()
        layer.choices = torch.zeros_like(layer.choices)


def loads(model: PeftModel) -> dict[str, Any]:
    """The load of each layer, by its name, for a checkpoint.

    Args:
        model: A model with experts.
    """
    return {name: layer.load.clone() for name, layer in routed_layers(model)}


def set_loads(model: PeftModel, state: Mapping[str, Any]) -> None:
    """Restores what `loads` gave.

    Args:
        model: A model with the same experts.
        state: From `loads`; empty for a model that is not trained on.
    """
    for name, layer in routed_layers(model):
        if name in state:
            layer.load = state[name].clone()


def routed_layers(model: PeftModel) -> Iterator[tuple[str, RoutedLinear]]:
    """The routed layers of the active adapter, by the name of the layer that they stand beside, in its order.

    Args:
        model: A model with experts.
    """
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, RoutedLinear) and layer.adapter_name == model.active_adapter:
            yield name.rpartition(".lora_A.")[0], layer
