"""Gradients of single facts, and the matrix of their inner products.

Two exact paths lead to the same matrix:

- *Hooks.* Where everything that trains is the weight or bias of an `nn.Linear` (LoRA, rsLoRA, LoRA+), one forward and
  one backward of a micro-batch suffice: the loss of a fact depends on its own row only, so the gradient of the summed
  losses with respect to a layer's output holds, row by row, the gradient of each fact, and the gradient of the weight
  is the product of that row with the row's input, summed over tokens.
- *One backward per fact.* For every other kind of adapter (DoRA, AdaLoRA, (IA)³, prompt tuning, ...).

Which one applies is decided by construction, by how the layers are called in the forward, and by a check that the
gradients of the facts add up to the gradient that autograd computes for the whole micro-batch.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_semantic_peft.interference.undisturbed import undisturbed
from lit_semantic_peft.models.objective import fact_nll
from lit_semantic_peft.tokens import Batch

logger = logging.getLogger(__name__)

# Gradients of the facts must add up to the micro-batch's gradient within this share of their norm. Far above the
# rounding of bfloat16 (0.4 %) and TF32, far below what a layer that is used twice or by its weight alone leaves out.
_SUM_TOLERANCE = 0.02


def gradient_matrix(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Inner products of the facts' gradients: K_ij = ⟨g_i, g_j⟩, g_i = ∂ℓ_i/∂θ.

    ℓ_i is `fact_nll`, the mean negative log-likelihood of the fact's target tokens, without loss weight; θ are the
    parameters that require a gradient. Evaluated in evaluation mode, so dropout is off and the result deterministic
    (gradient checkpointing, which transformers applies in training mode only, is off as well). The model is left as
    it was: modes, random number generators, parameters, `.grad`, `requires_grad`, hooks.

    Cost: about one forward and backward of the facts on the hook path, k backward passes of single facts otherwise.
    Peak memory on either path: 4·k·P bytes for k facts and P trainable parameters (64 facts × 2.4 million: 0.6 GB),
    plus the activations of one micro-batch (hooks) or of one fact.

    Args:
        model: A causal language model of transformers or a `peft` model around one; not wrapped in DDP.
        batches: The facts in micro-batches, padded on the right; moved to the model's device.

    Returns:
        float32 `(k, k)` on the CPU, symmetric, in the order of the batches' rows. Inner products are summed in at
        least float32 within a parameter and in float64 over parameters. The row and column of a fact whose gradient
        is not finite are NaN.

    Raises:
        ValueError: If no parameter requires a gradient.
    """
    with undisturbed(model):
        parameters = _trainable(model)
        batches = [_usable(batch, model) for batch in batches]
        layers = _linear_layers(model, parameters)
        if isinstance(layers, str):
            logger.info("Gradients of single facts by one backward per fact: %s", layers)
        else:
            try:
                return _gram(_features_by_hooks(model, layers, batches), sum(len(batch) for batch in batches))
            except _NotOneCallPerForward as reason:
                logger.info("Gradients of single facts by one backward per fact: %s", reason)
        features = _features_one_by_one(model, parameters, batches)
        return _gram(features, sum(len(batch) for batch in batches))


def one_backward_per_fact(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Gradient of each fact, by a forward and a backward of that fact alone: slow, obvious, right for every adapter.

    Args:
        model: As in `gradient_matrix`; left as it was.
        batches: As in `gradient_matrix`.

    Returns:
        `(k, P)` in float32 (float64 for a float64 model) on the model's device: facts in the order of the batches'
        rows, parameters in the order of `model.parameters()`, those without `requires_grad` left out.

    Raises:
        ValueError: If no parameter requires a gradient.
    """
    with undisturbed(model):
        parameters = _trainable(model)
        features = _features_one_by_one(model, parameters, [_usable(batch, model) for batch in batches])
        return torch.cat(features, dim=1)


class _NotOneCallPerForward(Exception):
    """A layer is not used as the hook path needs it; the message says which and how."""


@dataclass
class _LinearLayer:
    """A trainable `nn.Linear` and what the hooks collect of it."""

    name: str
    module: nn.Linear
    has_weight: bool = False
    has_bias: bool = False
    num_calls: int = 0  # in the current forward
    weight_gradients: list[Tensor] = field(default_factory=list)  # per micro-batch, float32 (B, out·in)
    bias_gradients: list[Tensor] = field(default_factory=list)  # per micro-batch, float32 (B, out)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("`model` has no parameter that requires a gradient, so no fact has one")
    return parameters


def _usable(batch: Batch, model: nn.Module) -> Batch:
    """On the model's device, and no inference tensors: those cannot be saved for a backward."""
    batch = batch.to(next(model.parameters()).device)
    if not batch.labels.is_inference():
        return batch
    return Batch(*(getattr(batch, name).clone() for name in Batch.__slots__))


def _linear_layers(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[_LinearLayer] | str:
    """The layers that own all trainable parameters, or why the hook path does not apply."""
    layers: dict[int, _LinearLayer] = {}
    owners: dict[int, int] = {}
    for name, module in model.named_modules():
        # A subclass may compute anything, so only nn.Linear itself is known to be x Wᵀ + b.
        if type(module) is not nn.Linear:
            continue
        for kind in ("weight", "bias"):
            parameter = getattr(module, kind)
            if parameter is None or not parameter.requires_grad:
                continue
            if id(parameter) in owners:
                return f"{name}.{kind} is shared with another layer"
            owners[id(parameter)] = id(module)
            layer = layers.setdefault(id(module), _LinearLayer(name, module))
            setattr(layer, f"has_{kind}", True)
    others = [parameter for parameter in parameters if id(parameter) not in owners]
    if others:
        names = [name for name, parameter in model.named_parameters() if any(parameter is other for other in others)]
        return f"{names[0]} and {len(names) - 1} more trainable parameters belong to no linear layer"
    return list(layers.values())


def _features_by_hooks(model: nn.Module, layers: Sequence[_LinearLayer], batches: Sequence[Batch]) -> list[Tensor]:
    """Per-fact gradients of each weight and bias, float32 `(k, numel)` each, by one backward per micro-batch."""
    for number, batch in enumerate(batches):
        for layer in layers:
            layer.num_calls = 0
        with _capturing(layers, len(batch)):
            total = fact_nll(model, batch).sum()
            parameters = [parameter for layer in layers for parameter in _parameters_of(layer)]
            # autograd.grad, not backward: neither `.grad` nor DDP's reducer sees anything.
            sums = iter(torch.autograd.grad(total, parameters, allow_unused=True))
        for layer in layers:
            for gradients, parameter in zip(_collected(layer), _parameters_of(layer), strict=True):
                if len(gradients) == number:  # not called, or its output not used: an expert, an inactive adapter
                    gradients.append(torch.zeros(len(batch), parameter.numel(), device=parameter.device))
                _require_sum(layer, gradients[number], next(sums))
    features: list[Tensor] = []
    for layer in layers:
        for gradients in _collected(layer):
            features.append(torch.cat(gradients) if gradients else torch.zeros(0, 1))
            gradients.clear()
    return features


def _parameters_of(layer: _LinearLayer) -> list[Tensor]:
    return [layer.module.weight] * layer.has_weight + [layer.module.bias] * layer.has_bias


def _collected(layer: _LinearLayer) -> list[list[Tensor]]:
    return [layer.weight_gradients] * layer.has_weight + [layer.bias_gradients] * layer.has_bias


@contextmanager
def _capturing(layers: Sequence[_LinearLayer], num_rows: int) -> Iterator[None]:
    """While open, a forward and backward through the model appends each layer's per-fact gradients."""
    handles: list[Any] = []
    try:
        handles.extend(layer.module.register_forward_hook(_capture_hook(layer, num_rows)) for layer in layers)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _capture_hook(layer: _LinearLayer, num_rows: int) -> Any:
    def on_forward(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        layer.num_calls += 1
        if layer.num_calls > 1:
            raise _NotOneCallPerForward(f"{layer.name} is called more than once in a forward")
        if len(arguments) != 1 or arguments[0].dim() != 3 or arguments[0].shape[0] != num_rows:
            raise _NotOneCallPerForward(f"{layer.name} is not called with one row of tokens per fact")
        activation = arguments[0].detach()

        # The hook of a tensor lives in its graph and dies with it: nothing to remove.
        def on_backward(gradient: Tensor) -> None:
            gradient = _at_least_float32(gradient)
            if layer.has_weight:
                product = gradient.transpose(1, 2) @ _at_least_float32(activation)  # (B, out, in): summed over tokens
                layer.weight_gradients.append(product.flatten(1))
            if layer.has_bias:
                layer.bias_gradients.append(gradient.sum(dim=1))

        output.register_hook(on_backward)  # type: ignore[no-untyped-call]

    return on_forward


def _require_sum(layer: _LinearLayer, gradients: Tensor, expected: Tensor | None) -> None:
    """Falls back if the weight also works elsewhere than in this layer's call, which only the sum can show."""
    total = gradients.sum(dim=0)
    wanted = torch.zeros_like(total) if expected is None else expected.flatten().to(total.dtype)
    error = torch.linalg.vector_norm(total - wanted)
    scale = torch.linalg.vector_norm(gradients) + torch.linalg.vector_norm(wanted)
    if bool(torch.isfinite(error)) and bool(error > _SUM_TOLERANCE * scale):
        raise _NotOneCallPerForward(f"{layer.name} has a gradient from elsewhere than its own call")


def _features_one_by_one(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Batch]
) -> list[Tensor]:
    """Per-fact gradients of each parameter, at least float32 `(k, numel)` each."""
    num_facts = sum(len(batch) for batch in batches)
    features = [
        torch.zeros(num_facts, parameter.numel(), device=parameter.device, dtype=_at_least_float32(parameter).dtype)
        for parameter in parameters
    ]
    row = 0
    for batch in batches:
        for fact in _single_facts(batch):
            loss = fact_nll(model, fact).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for feature, gradient in zip(features, gradients, strict=True):
                if gradient is not None:
                    feature[row] = gradient.detach().flatten().to(feature.dtype)
            row += 1
    return features


def _single_facts(batch: Batch) -> Iterator[Batch]:
    """Each row as a micro-batch of its own, cut to its own length."""
    for row in range(len(batch)):
        positions = batch.attention_mask[row].nonzero()
        end = int(positions.max()) + 1 if len(positions) else 1
        rows = slice(row, row + 1)
        yield Batch(
            input_ids=batch.input_ids[rows, :end],
            attention_mask=batch.attention_mask[rows, :end],
            labels=batch.labels[rows, :end],
            fact_index=batch.fact_index[rows],
            loss_weight=batch.loss_weight[rows],
        )


def _gram(features: list[Tensor], num_facts: int) -> Tensor:
    """Sum of each feature's inner products; frees the features while it goes."""
    matrix = torch.zeros(num_facts, num_facts, dtype=torch.float64)
    while features:
        feature = features.pop()
        matrix += (feature @ feature.T).cpu()
    matrix = ((matrix + matrix.T) / 2).float()  # not every BLAS gives A Aᵀ the same bits on both sides
    # Inf·0 and Inf−Inf would leave a mixture of NaN, Inf and numbers; a gradient that is not finite has no product.
    is_undefined = ~torch.isfinite(matrix.diagonal())
    matrix[is_undefined, :] = torch.nan
    matrix[:, is_undefined] = torch.nan
    return matrix


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
