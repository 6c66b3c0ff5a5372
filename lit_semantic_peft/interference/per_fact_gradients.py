"""Per-fact gradients, and the matrix of their inner products.

Two exact paths lead to the same gradients:

- *Hooks.* If there is a rule for every trainable parameter (`layer_rules`: LoRA, rsLoRA, DoRA, AdaLoRA, (IA)³ and
  plain linear layers), one forward and one backward of a micro-batch suffice.
- *One backward per fact.* For every other kind of adapter (prompt tuning, trained embeddings, LoHa, ...).

The layers decide which path is taken. A check in each micro-batch confirms the hooks: the facts' gradients must add up
to the gradient that autograd computes for all of them together. It fails if a parameter is also used where no rule
applies; the measurement then restarts on the other path.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_semantic_peft.interference.feature_store import FeatureStore, InMemory, OnDisk
from lit_semantic_peft.interference.layer_rules import LayerRule, at_least_float32, layer_rules
from lit_semantic_peft.models.disk_space import DiskSpaceError
from lit_semantic_peft.models.objective import fact_nll
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch

logger = logging.getLogger(__name__)

# Gradients of the facts must add up to the micro-batch's gradient within this share of their norm. Far above the
# rounding of bfloat16 (0.4 %) and TF32, far below the error if a layer's weight is used without calling the layer.
_SUM_TOLERANCE = 0.02

# Rows of the Gram matrix at a time: only the lower triangle of blocks is computed.
_GRAM_ROWS = 64


def gradient_matrix(model: nn.Module, batches: Sequence[Batch], features_folder: str | Path | None = None) -> Tensor:
    """Inner products of the facts' gradients: K_ij = ⟨g_i, g_j⟩, g_i = ∂ℓ_i/∂θ.

    ℓ_i is `fact_nll`, the mean negative log-likelihood of the fact's target tokens, without loss weight; θ are the
    parameters that require a gradient. Computed in evaluation mode, so dropout is off and the result deterministic
    (gradient checkpointing, which transformers applies in training mode only, is off as well). The model is not
    changed: modes, random number generators, parameters, `.grad`, `requires_grad`, hooks.

    Cost: about one forward and backward of the facts on the hook path, k backward passes of single facts otherwise.
    Memory: 4·k·P bytes for k facts and P trainable parameters (256 facts × 2.4 million: 2.5 GB); with
    `features_folder` those bytes are on disk instead. The activations of one micro-batch come on top. For more facts
    than fit in either: `gradient_sketch`.

    Args:
        model: A causal language model of transformers or a `peft` model around one; not wrapped in DDP.
        batches: The facts in micro-batches, padded on the right; moved to the model's device.
        features_folder: Folder of a temporary file for the gradients; None: in memory.

    Returns:
        float32 `(k, k)` on the CPU, symmetric, in the order of the batches' rows. Inner products are summed in at
        least float32 within a parameter and in float64 over parameters. The row and column of a fact whose gradient
        is not finite are NaN.

    Raises:
        DiskSpaceError: If the gradients do not fit into `features_folder`.
        ValueError: If no parameter requires a gradient.
    """
    with _features(model, batches, features_folder) as (features, num_facts):
        matrix = torch.zeros(num_facts, num_facts, dtype=torch.float64)
        for feature in features:
            for start in range(0, num_facts, _GRAM_ROWS):
                stop = min(start + _GRAM_ROWS, num_facts)
                matrix[start:stop, :stop] += (feature[start:stop] @ feature[:stop].T).cpu()
    symmetric = (matrix.tril() + matrix.tril(-1).T).float()
    return _undefined_as_nan(symmetric, symmetric.diagonal().clone())


def gradient_matrix_rows(
    model: nn.Module, batches: Sequence[Batch], features_folder: str | Path | None = None
) -> tuple[Tensor, int]:
    """This process's rows of the gradient matrix, when the facts are divided among processes. A collective.

    Each process computes the gradients of its own facts. They are gathered parameter by parameter, and each process
    multiplies its own by all. The rows of all processes together are `gradient_matrix` of all facts, ordered by rank.

    Args:
        model: As in `gradient_matrix`, the same on each process.
        batches: The facts of this process; there may be none.
        features_folder: As in `gradient_matrix`.

    Returns:
        float32 `(m, k)` on the CPU, m facts of this process by all k facts, and the index of its first row.

    Raises:
        DiskSpaceError: On all ranks, if the gradients of any do not fit into its `features_folder`.
        RuntimeError: If torch.distributed is not initialised.
        ValueError: If no parameter requires a gradient.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("`gradient_matrix_rows` needs an initialised process group; in one process: gradient_matrix")
    device = next(model.parameters()).device  # the one that the process group works on
    with ExitStack() as stack:
        outcomes: list[int | str] = [0] * dist.get_world_size()
        try:
            features, num_facts = stack.enter_context(_features(model, batches, features_folder))
        except DiskSpaceError as error:
            dist.all_gather_object(outcomes, str(error))
            raise
        dist.all_gather_object(outcomes, num_facts)
        counts = [outcome for outcome in outcomes if isinstance(outcome, int)]
        if len(counts) < len(outcomes):
            raise DiskSpaceError(next(outcome for outcome in outcomes if isinstance(outcome, str)))
        total = torch.zeros(num_facts, sum(counts), dtype=torch.float64)
        for feature in features:
            total += (feature @ _of_all_ranks(feature.to(device), counts).T.to(feature.device)).cpu()
    first = sum(counts[: dist.get_rank()])
    rows = total.float()
    squared_norm = _of_all_ranks(rows.diagonal(first).to(device), counts).cpu()
    return _undefined_as_nan(rows, squared_norm, first), first


def one_backward_per_fact(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Gradient of each fact, by a forward and a backward of that fact alone: slow, but correct for every adapter.

    Args:
        model: As in `gradient_matrix`; not changed.
        batches: As in `gradient_matrix`.

    Returns:
        `(k, P)` in float32 (float64 for a float64 model) on the model's device: facts in the order of the batches'
        rows, parameters in the order of `model.parameters()`, those without `requires_grad` left out.

    Raises:
        ValueError: If no parameter requires a gradient.
    """
    with undisturbed(model):
        parameters = trainable_parameters(model)
        store = InMemory(parameters, sum(len(batch) for batch in batches))
        _one_by_one(model, parameters, [usable(batch, model) for batch in batches], store)
        return torch.cat([store.take(number) for number in range(len(parameters))], dim=1)


def per_fact_gradients(model: nn.Module, batches: Sequence[Batch], store: FeatureStore) -> None:
    """Fills a store with the gradient of each fact, by the faster of the two paths that is exact for this model.

    Args:
        model: As in `gradient_matrix`; not changed.
        batches: As in `gradient_matrix`.
        store: Built for the model's trainable parameters, in their order.

    Raises:
        ValueError: If no parameter requires a gradient.
    """
    with undisturbed(model):
        parameters = trainable_parameters(model)
        batches = [usable(batch, model) for batch in batches]
        try:
            _by_hooks(model, parameters, batches, store)
        except _NoRule as reason:
            logger.info("Per-fact gradients are computed by one backward per fact: %s", reason)
            store.clear()
            _one_by_one(model, parameters, batches, store)


def time_forward_and_backward(
    model: nn.Module, batches: Sequence[Batch], precision: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> float:
    """Wall-clock seconds of a forward and backward of some facts.

    Through all layers and in evaluation mode: not compiled, without reused frozen layers or gradient checkpointing.

    Args:
        model: As in `gradient_matrix`; not changed.
        batches: As in `gradient_matrix`.
        precision: Creates the context of a forward pass, such as autocast.

    Raises:
        ValueError: If no parameter requires a gradient.
    """
    with undisturbed(model):
        parameters = trainable_parameters(model)
        begin = time.perf_counter()
        for batch in batches:
            with precision():
                total = fact_nll(model, usable(batch, model)).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for gradient in gradients[:1]:
            if gradient is not None:
                gradient.sum().item()  # waits for an accelerator to finish
        return time.perf_counter() - begin


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient, in the model's order.

    Raises:
        ValueError: If there is none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("`model` has no parameter that requires a gradient, so no fact has one")
    return parameters


class _NoRule(Exception):
    """The hooks miss a part of the gradient; the message names the parameter."""


class _Recorder:
    """Passes the per-fact gradients of one micro-batch on to the store, and adds them up for the check.

    Attributes:
        num_rows: Facts in the micro-batch.
        sums: Sum over the facts by parameter, `(numel,)`.
        squares: Sum of the squared entries by parameter: the scale of rounding errors.
    """

    def __init__(self, numbers: dict[int, int], store: FeatureStore, rows: slice) -> None:
        self.num_rows = rows.stop - rows.start
        self._numbers, self._store, self._rows = numbers, store, rows
        self.sums: dict[int, Tensor] = {}
        self.squares: dict[int, Tensor] = {}

    def add(self, parameter: nn.Parameter, gradients: Tensor) -> None:
        number = self._numbers[id(parameter)]
        gradients = gradients.detach().flatten(1)
        self._store.add(number, self._rows, gradients)
        total, square = gradients.sum(dim=0), torch.linalg.vector_norm(gradients).square()
        self.sums[number] = self.sums[number] + total if number in self.sums else total
        self.squares[number] = self.squares[number] + square if number in self.squares else square


def _by_hooks(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Batch], store: FeatureStore
) -> None:
    rules = layer_rules(model)
    known = {id(parameter) for rule in rules for parameter in rule.parameters}
    names = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in known]
    if names:
        more = f" and {len(names) - 1} more trainable parameters" if len(names) > 1 else ""
        raise _NoRule(f"no rule for {names[0]}{more}")
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    row = 0
    for batch in batches:
        recorder = _Recorder(numbers, store, slice(row, row + len(batch)))
        with _installed(rules, recorder):
            total = fact_nll(model, batch).sum()
            # autograd.grad, not backward: neither `.grad` nor DDP's reducer sees anything.
            sums = torch.autograd.grad(total, parameters, allow_unused=True)
        _require_sums(model, recorder, sums)
        row += len(batch)
        del total, sums  # frees the graph, whose hooks hold activations, before the next batch


@contextmanager
def _installed(rules: Sequence[LayerRule], recorder: _Recorder) -> Iterator[None]:
    handles = []
    try:
        for rule in rules:
            handles += rule.install(recorder)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_sums(model: nn.Module, recorder: _Recorder, expected: Sequence[Tensor | None]) -> None:
    """Raises `_NoRule` if a parameter is also used where no rule applies, which only the sum can show."""
    errors, scales = [], []
    for number, wanted in enumerate(expected):
        total = recorder.sums.get(number)
        if wanted is None and total is None:  # not called: an expert, an inactive adapter
            wanted = total = torch.zeros(1)
        elif wanted is None:
            wanted = torch.zeros_like(total)  # type: ignore[arg-type]
        elif total is None:
            total = torch.zeros_like(wanted).flatten()
        assert total is not None
        norm = torch.linalg.vector_norm(wanted.float())
        errors.append(torch.linalg.vector_norm(total - wanted.flatten().to(total.dtype)).float().cpu())
        scales.append((norm + recorder.squares.get(number, torch.zeros(())).sqrt()).float().cpu())
    error, scale = torch.stack(errors), torch.stack(scales)
    wrong = (torch.isfinite(error) & (error > _SUM_TOLERANCE * scale)).nonzero().flatten().tolist()
    if wrong:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        raise _NoRule(f"{names[wrong[0]]} also has a gradient from outside its own layer's call")


def _one_by_one(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Batch], store: FeatureStore
) -> None:
    row = 0
    for batch in batches:
        for fact in single_facts(batch):
            loss = fact_nll(model, fact).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for number, gradient in enumerate(gradients):
                if gradient is not None:
                    store.add(number, slice(row, row + 1), at_least_float32(gradient.detach()).reshape(1, -1))
            row += 1


def single_facts(batch: Batch) -> Iterator[Batch]:
    """Each row as a micro-batch of its own, without padding."""
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
            is_filler=batch.is_filler[rows],
            text_index=batch.text_index[rows],
        )


def usable(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device, without inference tensors, which cannot be saved for a backward."""
    batch = batch.to(next(model.parameters()).device)
    if not batch.labels.is_inference():
        return batch
    return Batch(*(getattr(batch, name).clone() for name in Batch.__slots__))


@contextmanager
def _features(
    model: nn.Module, batches: Sequence[Batch], folder: str | Path | None
) -> Iterator[tuple[Iterator[Tensor], int]]:
    """The facts' gradients parameter by parameter, and the number of facts."""
    num_facts = sum(len(batch) for batch in batches)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))  # the store, too, must not be created in inference mode
        parameters = trainable_parameters(model)
        store: InMemory | OnDisk
        if folder is None:
            store = InMemory(parameters, num_facts)
        else:
            store = stack.enter_context(OnDisk(parameters, num_facts, folder))
        per_fact_gradients(model, batches, store)
        yield (store.take(number) for number in range(len(parameters))), num_facts


def _of_all_ranks(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes, in the order of ranks. Processes may have different numbers of rows."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def _undefined_as_nan(rows: Tensor, squared_norm: Tensor, first: int = 0) -> Tensor:
    """NaN in the row and column of a fact whose gradient is not finite.

    Otherwise Inf·0 and Inf−Inf would leave a mixture of NaN, Inf and numbers.
    """
    is_undefined = ~torch.isfinite(squared_norm)
    rows[is_undefined[first : first + len(rows)], :] = torch.nan
    rows[:, is_undefined] = torch.nan
    return rows
