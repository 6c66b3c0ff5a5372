"""Trains facts alone, each from the same start: many in one batched run if possible."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from lit_semantic_peft.interference.per_fact_gradients import single_facts, trainable_parameters, usable
from lit_semantic_peft.models.objective import fact_nll, token_nll
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch

logger = logging.getLogger(__name__)

OptimizerOf = Callable[[list[nn.Parameter]], Optimizer]

# Element-wise optimizers: stacked copies of a parameter are updated as each copy would be alone.
_ELEMENTWISE = (SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop)


def fact_log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """Log p of each fact's labelled tokens (the target and, if it is trained, the end token), without dropout.

    Args:
        model: A causal language model; not changed.
        batch: The facts.

    Returns:
        float32 `(B,)` in nats, ≤ 0, on the model's device.
    """
    with undisturbed(model), torch.no_grad():
        return -token_nll(model, usable(batch, model)).sum(dim=1)


def train_alone(
    model: nn.Module,
    batch: Batch,
    learning_rates: Sequence[float],
    optimizer: OptimizerOf,
    start: Sequence[Tensor] | None = None,
    one_by_one: bool = False,
    texts: Sequence[Batch] | None = None,
) -> Tensor:
    """Trains each fact alone from the same start, and returns the log-probability of its target afterwards.

    One optimizer step on ℓ_i for each learning rate, without dropout, weight, clipping or other facts. If only weights
    and biases of linear layers are trained (LoRA, rsLoRA) and the optimizer is element-wise, all facts of the batch are
    trained in one run: each row has its own copy of the adapter, in a batched product. Otherwise they are trained one
    after another. Parameters, `.grad`, modes and random number generators are restored.

    Memory of the batched run: 4 copies of the adapter per fact with AdamW (2.4 million parameters: 39 MB per fact).

    Args:
        model: A causal language model of transformers or a `peft` model around one; not wrapped in DDP.
        batch: The facts, as they are asked afterwards.
        learning_rates: Learning rate of each step; their number is the number of steps.
        optimizer: Builds the optimizer from a list of parameters.
        start: Values of the trainable parameters to start from, in the model's order; None: the current ones.
        one_by_one: Whether to always use the slow path.
        texts: What each step trains: as many rows as the batch, of the same facts; None: the batch itself.

    Returns:
        log p of each fact's labelled tokens after its steps, float32 `(B,)`, nats, on the CPU.

    Raises:
        ValueError: If no parameter requires a gradient, or `start` or `texts` do not fit.
    """
    with undisturbed(model):
        parameters = trainable_parameters(model)
        begin = [parameter.detach().clone() for parameter in parameters] if start is None else list(start)
        if [value.shape for value in begin] != [parameter.shape for parameter in parameters]:
            raise ValueError("`start` must hold a tensor of the same shape for each trainable parameter")
        batch = usable(batch, model)
        texts = [batch] * len(learning_rates) if texts is None else [usable(text, model) for text in texts]
        if len(texts) != len(learning_rates) or any(len(text) != len(batch) for text in texts):
            raise ValueError("`texts` must hold a batch for each step, with a row for each fact")
        steps = list(zip(texts, learning_rates, strict=True))
        if not one_by_one:
            try:
                return _batched(model, parameters, batch, begin, steps, optimizer)
            except _NotBatched as reason:
                logger.info("Facts are trained alone one after another: %s", reason)
        return _one_by_one(model, parameters, batch, begin, steps, optimizer)


class _NotBatched(Exception):
    """Why facts cannot be trained in one run."""


def _batched(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    begin: Sequence[Tensor],
    steps: Sequence[tuple[Batch, float]],
    optimizer_of: OptimizerOf,
) -> Tensor:
    kind = type(optimizer_of(list(parameters)))  # not of the copies: another optimizer may refuse their further axis
    if kind not in _ELEMENTWISE:
        raise _NotBatched(f"{kind.__name__} is not known to be element-wise")
    copies = {
        id(parameter): nn.Parameter(value.to(parameter).expand(len(batch), *value.shape).clone())
        for parameter, value in zip(parameters, begin, strict=True)
    }
    stacked = list(copies.values())
    optimizer = optimizer_of(stacked)
    with _own_copies(model, copies, len(batch)):
        for number, (text, rate) in enumerate(steps):
            total = fact_nll(model, text).sum()
            if number == 0:
                leaks = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
                if any(gradient is not None for gradient in leaks):
                    raise _NotBatched("a parameter is also used outside its linear layer's call")
            _step(optimizer, stacked, torch.autograd.grad(total, stacked, allow_unused=True), rate)
        with torch.no_grad():
            return -token_nll(model, batch).sum(dim=1).cpu()


@contextmanager
def _own_copies(model: nn.Module, copies: dict[int, nn.Parameter], num_rows: int) -> Iterator[None]:
    """Within the context each trainable linear layer applies to each row that row's copy of its parameters."""
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    owned = {id(parameter) for layer in layers for parameter in (layer.weight, layer.bias) if parameter is not None}
    if not copies.keys() <= owned:
        raise _NotBatched("not all trainable parameters belong to linear layers")

    def own_output(layer: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = arguments
        if x.dim() != 3 or x.shape[0] != num_rows:
            raise _NotBatched("a linear layer is not called with one row of tokens per fact")
        weight, bias = copies.get(id(layer.weight)), copies.get(id(layer.bias))
        own: Tensor = x @ weight.transpose(1, 2) if weight is not None else x @ layer.weight.T
        if bias is not None:
            return own + bias[:, None, :]
        return own if layer.bias is None else own + layer.bias

    handles = [
        layer.register_forward_hook(own_output)
        for layer in layers
        if id(layer.weight) in copies or id(layer.bias) in copies
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _one_by_one(
    model: nn.Module,
    parameters: list[nn.Parameter],
    batch: Batch,
    begin: Sequence[Tensor],
    steps: Sequence[tuple[Batch, float]],
    optimizer_of: OptimizerOf,
) -> Tensor:
    before = [(parameter.detach().clone(), parameter.grad) for parameter in parameters]
    results = []
    try:
        for row, fact in enumerate(single_facts(batch)):
            _put(parameters, begin)
            optimizer = optimizer_of(parameters)
            for texts, rate in steps:
                total = fact_nll(model, next(islice(single_facts(texts), row, None))).sum()
                _step(optimizer, parameters, torch.autograd.grad(total, parameters, allow_unused=True), rate)
            with torch.no_grad():
                results.append(-token_nll(model, fact).sum(dim=1).cpu())
    finally:
        _put(parameters, [value for value, _ in before])
        for parameter, (_, gradient) in zip(parameters, before, strict=True):
            parameter.grad = gradient
    return torch.cat(results)


def _step(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], rate: float
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
