"""Per-fact gradients of a layer's parameters from its inputs and output gradients: one rule per known kind of layer.

A micro-batch has one row of tokens per fact, and the loss of a fact depends on its own row only. So each row of the
gradient of the summed losses with respect to a layer's output is the gradient of one fact's loss. With the layer's
input, the chain rule gives the gradient of its parameters for each row. In the formulas x is the input `(B, T, in)`, G
the gradient of the output `(B, T, out)`; sums are over tokens t, separately for each row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft.tuners.adalora.layer import SVDLinear
from peft.tuners.ia3.layer import Linear as IA3Linear
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_semantic_peft.adapters.flora import CoredLinear
from lit_semantic_peft.adapters.knowledge_moe import RoutedLinear, scaled
from lit_semantic_peft.adapters.subject_lora import LinearAtNames


class Recorder(Protocol):
    """Receives the per-fact gradients of one micro-batch."""

    num_rows: int

    def add(self, parameter: nn.Parameter, gradients: Tensor) -> None:
        """Adds per-fact gradients of one parameter, `(num_rows, ...)`. Called once for each call of a layer."""


@dataclass(frozen=True)
class LayerRule:
    """The rule of one layer.

    Attributes:
        parameters: The trainable parameters that the rule covers.
        install: Registers hooks on the layer that pass these parameters' per-fact gradients to the recorder in every
            backward; returns the handles. A call without one row of tokens per fact is ignored.
    """

    parameters: list[nn.Parameter]
    install: Callable[[Recorder], list[RemovableHandle]]


def layer_rules(model: nn.Module) -> list[LayerRule]:
    """The rules of all layers with a trainable parameter and a known rule.

    Args:
        model: A model with any adapter.

    Returns:
        Rules. A parameter that two layers share occurs in both rules, and its gradients are added.
    """
    rules = []
    for module in model.modules():
        rule_of = _RULES.get(type(module))  # exactly this class: a subclass may compute anything
        if rule_of is not None:
            rule = rule_of(module)
            if rule is not None:
                rules.append(rule)
    return rules


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float64 if it is float64, else in float32: sums over tokens in bfloat16 lose digits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _linear(layer: nn.Linear) -> LayerRule | None:
    """Y = x Wᵀ + b: ∂W = Σ_t G_t ⊗ x_t, ∂b = Σ_t G_t. LoRA and rsLoRA consist of these."""
    weight, bias = (_trainable(layer.weight), _trainable(layer.bias))
    if weight is None and bias is None:
        return None

    def add(recorder: Recorder, gradient: Tensor, x: Tensor) -> None:
        if weight is not None:
            recorder.add(weight, outer_products(gradient, x))
        if bias is not None:
            recorder.add(bias, _sum(gradient))

    return _rule_of_input(layer, [parameter for parameter in (weight, bias) if parameter is not None], add)


def _flora(layer: CoredLinear) -> LayerRule | None:
    """Y = B h with h = G x and D = G_t B: ∂B = Σ_t G_t ⊗ h_t, ∂core = Σ_t D_t ⊗ x_t. A has the rule of `nn.Linear`."""
    if _trainable(layer.core) is None:
        return None

    def add(recorder: Recorder, gradient: Tensor, x: Tensor) -> None:
        core, outer = (at_least_float32(one.detach()) for one in (layer.core, layer.outer))
        gradient, activation = at_least_float32(gradient), at_least_float32(x)
        recorder.add(layer.outer, outer_products(gradient, activation @ core.T))
        recorder.add(layer.core, outer_products(gradient @ outer, activation))

    return _rule_of_input(layer, [layer.core, layer.outer], add)


def _at_names(layer: LinearAtNames) -> LayerRule | None:
    """Y_t = m_t A x_t, m_t whether t is of a name: ∂A = Σ_t m_t G_t ⊗ x_t. B has the rule of `nn.Linear`."""
    weight = _trainable(layer.weight)
    if weight is None:
        return None

    def install(recorder: Recorder) -> list[RemovableHandle]:
        def on_forward(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            x = arguments[0].detach()
            if not _is_per_fact(x, output, recorder):
                return
            elsewhere = ~layer.at_names(x)[..., None]  # known in the pass only

            def on_backward(gradient: Tensor) -> None:
                recorder.add(weight, outer_products(gradient.masked_fill(elsewhere, 0.0), x))

            _on_gradient(output, on_backward)

        return [layer.register_forward_hook(on_forward)]

    return LayerRule([weight], install)


def _experts(layer: RoutedLinear) -> LayerRule | None:
    """Y_e = G_e A_e x with logits z = V x̂ + U â: H_e = ⟨∂Y_e, A_e x⟩ over the chosen, ∂z = G∘(H − Σ_e G_e H_e).

    Then ∂A_e = Σ_t G_te ∂Y_te ⊗ x_t, ∂V = Σ_t ∂z_t ⊗ x̂_t, ∂U = Σ_t ∂z_t ⊗ â; B has the rule of `nn.Linear`. In
    evaluation mode, where the router has no noise.
    """
    if _trainable(layer.weight) is None:
        return None

    def install(recorder: Recorder) -> list[RemovableHandle]:
        def on_forward(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            x = arguments[0].detach()
            if not _is_per_fact(x, output, recorder):
                return
            rows = layer.rows(x)  # known in the pass only

            def on_backward(gradient: Tensor) -> None:
                with torch.no_grad():
                    probability, is_chosen = layer.gates(x, rows.anchor)
                    gates, by_expert = probability * is_chosen, (*probability.shape, -1)
                    gradient = gradient.masked_fill(~rows.is_open[:, None, None], 0.0).reshape(by_expert)
                    inner = (x @ layer.weight.T).reshape(by_expert)
                    of_gate = (gradient * inner).sum(dim=-1) * is_chosen
                    of_logits = probability * (of_gate - (gates * of_gate).sum(dim=-1, keepdim=True))
                    recorder.add(layer.weight, outer_products((gradient * gates[..., None]).flatten(2), x))
                    recorder.add(layer.router, outer_products(of_logits, scaled(x)))
                    anchor = scaled(rows.anchor)[:, None]
                    recorder.add(layer.anchor_router, outer_products(of_logits.sum(dim=1, keepdim=True), anchor))

            _on_gradient(output, on_backward)

        return [layer.register_forward_hook(on_forward)]

    return LayerRule([layer.weight, layer.router, layer.anchor_router], install)


def _dora_magnitude(layer: DoraLinearLayer) -> LayerRule | None:
    """Y = (m/ν − 1) z + (m/ν) u, ν a constant, so ∂m = Σ_t G_t (z_t + u_t)/ν = Σ_t G_t (y_t + z_t)/m.

    z is the base layer's output without bias and u the scaled output of LoRA, whose matrices have their own rule.
    """
    magnitude = _trainable(layer.weight)
    if magnitude is None:
        return None

    def install(recorder: Recorder) -> list[RemovableHandle]:
        def on_forward(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
            base = keywords.get("base_result")
            if base is None or not _is_per_fact(arguments[0], output, recorder) or bool((magnitude == 0).any()):
                return
            bias = keywords["base_layer"].bias
            # Only references are kept here; the sum is computed when the gradient arrives, layer by layer.
            plain, base = output.detach(), base.detach()

            def on_backward(gradient: Tensor) -> None:
                unscaled = at_least_float32(plain) + at_least_float32(base)
                if bias is not None:
                    unscaled = unscaled - bias.detach()
                recorder.add(magnitude, _sum(gradient * unscaled) / magnitude.detach())

            _on_gradient(output, on_backward)

        return [layer.register_forward_hook(on_forward, with_kwargs=True)]

    return LayerRule([magnitude], install)


def _adalora(layer: SVDLinear) -> LayerRule | None:
    """Y = z + c x (A∘E)ᵀ Bᵀ with h = x (A∘E)ᵀ and D = c G B: ∂B = c Σ_t G_t ⊗ h_t and ∂(A∘E) = Σ_t D_t ⊗ x_t.

    A, B, E are in ParameterDicts, without modules of their own. ∂A = ∂(A∘E)∘E; ∂E is the row sum of ∂(A∘E)∘A.
    """
    adapters = [
        name
        for name in layer.active_adapters
        if name in layer.lora_A and all(part[name].requires_grad for part in (layer.lora_A, layer.lora_B, layer.lora_E))
    ]
    if not adapters:
        return None

    def add(recorder: Recorder, gradient: Tensor, x: Tensor) -> None:
        gradient, activation = at_least_float32(gradient), at_least_float32(x)
        for name in adapters:
            a, b, e = (part[name].detach() for part in (layer.lora_A, layer.lora_B, layer.lora_E))
            factor = float(layer.scaling[name] / (layer.ranknum[name] + 1e-5))
            recorder.add(layer.lora_B[name], factor * outer_products(gradient, activation @ (a * e).T))
            product = factor * outer_products(gradient @ b, activation)
            recorder.add(layer.lora_A[name], product * e)
            recorder.add(layer.lora_E[name], (product * a).sum(dim=2))

    parts = (layer.lora_A, layer.lora_B, layer.lora_E)
    return _rule_of_input(layer, [part[name] for name in adapters for part in parts], add)


def _ia3(layer: IA3Linear) -> LayerRule | None:
    """Y = s∘z: ∂s = Σ_t G_t∘z_t; in a feed-forward layer z = W(s∘x): ∂s = Σ_t H_t∘x_t, H the gradient of s∘x."""
    active = [name for name in layer.active_adapters if name in layer.ia3_l]
    scale = _trainable(layer.ia3_l[active[0]]) if len(active) == 1 else None  # several would multiply
    if scale is None:
        return None

    def install(recorder: Recorder) -> list[RemovableHandle]:
        unscaled: list[Tensor] = []  # of the current call

        def scaled(value: Tensor) -> None:
            if not unscaled:
                return
            factor = unscaled.pop()
            _on_gradient(value, lambda gradient: recorder.add(scale, _sum(gradient * factor)))

        def before_layer(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            unscaled.clear()
            if layer.is_feedforward and _has_rows(arguments[0], recorder):
                unscaled.append(at_least_float32(arguments[0].detach()))

        def before_base(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if layer.is_feedforward and arguments[0].requires_grad:
                scaled(arguments[0])

        def after_base(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            if not layer.is_feedforward and _has_rows(output, recorder):
                unscaled.append(at_least_float32(output.detach()))

        def after_layer(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            if not layer.is_feedforward and output.requires_grad:
                scaled(output)

        base = layer.get_base_layer()
        return [
            layer.register_forward_pre_hook(before_layer),
            base.register_forward_pre_hook(before_base),
            base.register_forward_hook(after_base),
            layer.register_forward_hook(after_layer),
        ]

    return LayerRule([scale], install)


_RULES: dict[type[nn.Module], Callable[[Any], LayerRule | None]] = {
    nn.Linear: _linear,
    CoredLinear: _flora,
    RoutedLinear: _experts,
    LinearAtNames: _at_names,
    DoraLinearLayer: _dora_magnitude,
    SVDLinear: _adalora,
    IA3Linear: _ia3,
}


def _rule_of_input(
    layer: nn.Module, parameters: list[nn.Parameter], add: Callable[[Recorder, Tensor, Tensor], None]
) -> LayerRule:
    """A rule that needs the gradient of the output and the layer's first input; `add` gets both."""

    def install(recorder: Recorder) -> list[RemovableHandle]:
        def on_forward(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            x = arguments[0]
            # DoRA calls lora_A with an identity matrix in each forward, and detaches the output.
            if _is_per_fact(x, output, recorder):
                x = x.detach()
                _on_gradient(output, lambda gradient: add(recorder, gradient, x))

        return [layer.register_forward_hook(on_forward)]

    return LayerRule(parameters, install)


def _trainable(parameter: Tensor | None) -> nn.Parameter | None:
    return parameter if isinstance(parameter, nn.Parameter) and parameter.requires_grad else None


def _has_rows(value: Tensor, recorder: Recorder) -> bool:
    return value.dim() == 3 and value.shape[0] == recorder.num_rows


def _is_per_fact(value: Tensor, output: Tensor, recorder: Recorder) -> bool:
    return _has_rows(value, recorder) and output.requires_grad


def _on_gradient(value: Tensor, hook: Callable[[Tensor], None]) -> None:
    # The hook of a tensor is freed with its graph: nothing to remove.
    value.register_hook(hook)  # type: ignore[no-untyped-call]


def outer_products(left: Tensor, right: Tensor) -> Tensor:
    """Σ_t left_t ⊗ right_t of each fact, in float32 at least.

    Args:
        left: `(B, T, l)`.
        right: `(B, T, r)`.

    Returns:
        `(B, l, r)`.
    """
    return at_least_float32(left).transpose(1, 2) @ at_least_float32(right)


def _sum(value: Tensor) -> Tensor:
    return at_least_float32(value).sum(dim=1)
