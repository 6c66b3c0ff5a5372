"""Whether an adapter would be trained: which of its tensors get a gradient, at the start and after a step."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base_files import first_line
from lit_semantic_peft.models.objective import fact_nll
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of
from lit_semantic_peft.models.targets import suggestion
from lit_semantic_peft.tokens import Batch

logger = logging.getLogger(__name__)

_STEP = 0.05
_MOST_NAMES = 3
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@contextmanager
def moved_adapter(model: PeftModel, batch: Batch) -> Iterator[Mapping[str, nn.Parameter]]:
    """Within the block every trained tensor is one step of sign descent away from where it was.

    Args:
        model: The model with its adapter, in evaluation mode; its tensors are restored to the last bit.
        batch: The facts of the step.

    Yields:
        The trained tensors by name.

    Raises:
        InputError: As `checked_gradients`, for the gradients of the step.
    """
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    kept = {name: one.detach().clone() for name, one in parameters.items()}
    try:
        with _refused_where_it_fails(model):
            losses = fact_nll(model, batch)
        gradients = checked_gradients(model, parameters, batch, losses)
        with torch.no_grad():
            for name, gradient in gradients.items():
                parameters[name].sub_(_STEP * gradient.sign())
        torch.clear_autocast_cache()  # of the tensors as they were
        yield parameters
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)
        torch.clear_autocast_cache()


def checked_gradients(
    model: PeftModel, parameters: Mapping[str, nn.Parameter], batch: Batch, losses: Tensor
) -> dict[str, Tensor]:
    """The gradients of the adapter's tensors by name, without those that have none or only zeros.

    Args:
        model: The model with its adapter, in evaluation mode.
        parameters: The trained tensors by name.
        batch: The facts that the losses are of.
        losses: Their losses `(B,)`, from a pass of the model with gradients; the gradients are those of the mean.

    Raises:
        InputError: If a tensor has no gradient though others of its layer do, or the adapter's traits say that none may
            lack one; or if one is not finite, or all are zero.
    """
    kind = peft_type_name(model)
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if losses.requires_grad:
        with _refused_where_it_fails(model), torch.enable_grad():
            found = torch.autograd.grad(losses.mean(), list(parameters.values()), allow_unused=True)
    gradients = {name: one for name, one in zip(parameters, found, strict=True) if one is not None}
    sizes = {name: float(one.abs().sum(dtype=torch.float64)) for name, one in gradients.items()}
    infinite = [name for name, size in sizes.items() if not isfinite(size)]
    for names, what in (
        (_lacking(model, batch, parameters.keys() - gradients.keys(), gradients.keys()), "no gradient"),
        (infinite, "a gradient that is not finite"),
    ):
        if names:
            raise InputError(
                f"`peft_config`: of an adapter of type {kind} on this base model {len(names)} of {len(parameters)} "
                f"tensors have {what}, for example {_listed(sorted(names))}. Use another adapter, or `--self_check "
                "false` to train all the same."
            )
    if not any(sizes.values()):
        raise InputError(
            f"`peft_config`: an adapter of type {kind} would not be trained on this base model: the gradient of each "
            "of its tensors is zero or missing. Let it adapt layers that the model runs, or use another adapter."
        )
    return {name: one for name, one in gradients.items() if sizes[name]}


def say_unmoved(parameters: Collection[str], moved: Collection[str]) -> None:
    """Logs which tensors of the adapter get no gradient, if there are such.

    Args:
        parameters: Names of the trained tensors.
        moved: Names of those that get a gradient (`checked_gradients`).
    """
    if unmoved := [name for name in parameters if name not in moved]:
        logger.warning(
            "Tensors of the adapter that get no gradient from the texts of the self-check: %d of %d (%s)",
            len(unmoved), len(parameters), _listed(unmoved),
        )  # fmt: skip


@contextmanager
def _refused_where_it_fails(model: PeftModel) -> Iterator[None]:
    """Raises InputError for whatever a pass raises: each architecture and adapter has its own for what it cannot do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        instead = suggestion(model.get_base_model(), model.active_peft_config)
        raise InputError(
            f"`peft_config`: an adapter of type {peft_type_name(model)} cannot be trained on this base model: "
            f"{type(error).__name__}: {first_line(error)}.{instead}"
        ) from error


def _lacking(model: PeftModel, batch: Batch, missing: Iterable[str], there: Iterable[str]) -> list[str]:
    """The tensors that should have a gradient, of those that are missing one.

    A layer none of whose tensors has a gradient decides something discrete, such as which tokens are attended to.
    """
    missing = list(missing)
    if not missing or not traits_of(model).may_lack_gradient:
        return missing
    with _layers_that_ran(model) as ran, torch.no_grad():
        fact_nll(model, batch)
    reached = {_layer_of(model, name) for name in there} & ran
    return [name for name in missing if _layer_of(model, name) in reached]


@contextmanager
def _layers_that_ran(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Gathers the modules whose forward is called within the block on at least one row."""
    ran: set[nn.Module] = set()

    def note(module: nn.Module, arguments: tuple[object, ...]) -> None:
        if not any(isinstance(one, Tensor) and one.numel() == 0 for one in arguments):
            ran.add(module)

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _layer_of(model: nn.Module, name: str) -> nn.Module:
    """The adapted layer that a tensor belongs to, else the module that computes with it."""
    path = name.split(".")[:-1]
    above = [model.get_submodule(".".join(path[:end])) for end in range(len(path), 0, -1)]
    adapted = next((module for module in above if isinstance(module, BaseTunerLayer)), None)
    return adapted or next(module for module in above if not isinstance(module, _CONTAINERS))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
