"""LoRA's linear layers in training: each one node of the graph, whose second product is added where the first one is.

With W of the base layer, x Wᵀ + s (x Aᵀ) Bᵀ takes three passes over outputs as large as the layer's beside its
products: one to scale, one to add, and in the backward pass one more to scale and one to add. Here none is left: the
narrow product is scaled, and the wide ones add to what is there. Same numbers, but for rounding.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse_lora(model: PeftModel) -> None:
    """From now on LoRA's linear layers run fused wherever a graph is made and nothing looks into the layer.

    Each call decides: with dropout, DoRA or another variant, biases of the adapter, several adapters, quantised or
    trained base weights, autocast, weights of several types, hooks inside the layer, or on another device than a CPU,
    where nothing was measured, PEFT's own forward runs.

    Args:
        model: The model with its adapter.
    """
    for layer in model.modules():
        if type(layer) is Linear:
            layer.forward = MethodType(_forward, layer)


def separate_lora(model: PeftModel) -> None:
    """PEFT's own forward runs again.

    Args:
        model: As given to `fuse_lora`.
    """
    for layer in model.modules():
        if type(layer) is Linear:
            vars(layer).pop("forward", None)


class _FusedLora(torch.autograd.Function):
    """x Wᵀ + c + s (x Aᵀ) Bᵀ of x `(N, d_in)`, with W `(d_out, d_in)` and c frozen, A `(r, d_in)`, B `(d_out, r)`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        narrow = x @ a.T
        outputs = F.linear(x, weight, bias)
        ctx.save_for_backward(x, narrow, weight, a, b)
        ctx.scaling = scaling
        return torch.addmm(outputs, narrow, b.T, alpha=scaling, out=outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, narrow, weight, a, b) = outer, ctx.saved_tensors
        of_x, _, _, of_a, of_b, _ = ctx.needs_input_grad
        inner = (gradient @ b).mul_(ctx.scaling) if of_x or of_a else None
        to_x = gradient @ weight if of_x else None
        if to_x is not None and inner is not None:
            torch.addmm(to_x, inner, a, out=to_x)
        to_a = inner.T @ x if of_a and inner is not None else None
        to_b = (narrow.T @ gradient).mul_(ctx.scaling).T if of_b else None  # faster than the other way round
        return to_x, None, None, to_a, to_b, None


def _forward(layer: Any, x: Tensor, *arguments: Any, **more: Any) -> Tensor:
    """Of a layer that `fuse_lora` has seen."""
    if arguments or more or not (torch.is_grad_enabled() and _is_plain(layer, x)):
        outputs: Tensor = Linear.forward(layer, x, *arguments, **more)
        return outputs
    (name,), base = layer.active_adapters, layer.base_layer
    factors = layer.lora_A[name].weight, layer.lora_B[name].weight
    rows = x.reshape(-1, x.shape[-1])
    outputs = _FusedLora.apply(rows, base.weight, base.bias, *factors, layer.scaling[name])  # type: ignore[no-untyped-call]
    return outputs.view(*x.shape[:-1], -1)


def _is_plain(layer: Any, x: Tensor) -> bool:
    """Whether PEFT's forward would compute what `_FusedLora` does, and nobody sees the difference."""
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return False
    (name,), base = names, layer.base_layer
    a, b = layer.lora_A[name], layer.lora_B[name]
    if name in layer.lora_variant or type(layer.lora_dropout[name]) is not nn.Identity:
        return False
    if not all(type(one) is nn.Linear and not _is_watched(one) for one in (base, a, b)):
        return False
    tensors = (x, base.weight, a.weight, b.weight)
    return (
        x.is_cpu
        and a.bias is None
        and b.bias is None
        and not any(parameter.requires_grad for parameter in base.parameters())
        and len({one.dtype for one in tensors}) == 1
        and all(type(one) in (Tensor, nn.Parameter) for one in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_watched(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)
