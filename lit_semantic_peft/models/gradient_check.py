"""Whether an adapter would be trained: which of its tensors get a gradient, at the start and after a step."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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
def moved_adapter(model: PeftModel, batch: Batch) -> Iterator[None]:
    """Within the block every trained tensor is one step of sign descent away from where it was.

    Args:
        model: The model with its adapter, in evaluation mode; its tensors are restored to the last bit.
        batch: The facts of the step.

    Raises:
        InputError: If a tensor has no gradient though others of its layer do, unless the adapter's traits say that it
            may lack one; or if one is not finite, or all are zero.
    """
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    kept = {name: one.detach().clone() for name, one in parameters.items()}
    try:
        gradients = _checked_gradients(model, batch, parameters)
        with torch.no_grad():
            for name, gradient in gradients.items():
                parameters[name] -= _STEP * gradient.sign()
        moved = _checked_gradients(model, batch, parameters)
        if unmoved := [name for name, gradient in moved.items() if not gradient.any()]:
            logger.warning(
                "Tensors of the adapter whose gradient is zero on the texts of the self-check: %d of %d (%s)",
                len(unmoved), len(parameters), _listed(unmoved),
            )  # fmt: skip
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


def _checked_gradients(model: PeftModel, batch: Batch, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients of the mean loss, by name; tensors without one are left out."""
    kind = peft_type_name(model)
    with _layers_that_ran(model) as ran:
        try:
            loss = fact_nll(model, batch).mean()
            found: Sequence[Tensor | None] = [None] * len(parameters)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each architecture and adapter has its own for what it cannot do
            instead = suggestion(model.get_base_model(), model.active_peft_config)
            raise InputError(
                f"`peft_config`: an adapter of type {kind} cannot be trained on this base model: "
                f"{type(error).__name__}: {first_line(error)}.{instead}"
            ) from error
    gradients = {name: one for name, one in zip(parameters, found, strict=True) if one is not None}
    # A layer none of whose tensors has a gradient decides something discrete, such as which tokens are attended to.
    reached = {_layer_of(model, name) for name in gradients} & ran
    may_lack = traits_of(model).may_lack_gradient
    lacking = [
        name
        for name in parameters.keys() - gradients.keys()
        if _layer_of(model, name) in reached and not any(part in name for part in may_lack)
    ]
    infinite = [name for name, one in gradients.items() if not one.isfinite().all()]
    for names, what in ((lacking, "no gradient"), (infinite, "a gradient that is not finite")):
        if names:
            raise InputError(
                f"`peft_config`: of an adapter of type {kind} on this base model {len(names)} of {len(parameters)} "
                f"tensors have {what}, for example {_listed(sorted(names))}. Use another adapter, or `--self_check "
                "false` to train all the same."
            )
    if not any(one.any() for one in gradients.values()):
        raise InputError(
            f"`peft_config`: an adapter of type {kind} would not be trained on this base model: the gradient of each "
            "of its tensors is zero or missing. Let it adapt layers that the model runs, or use another adapter."
        )
    return gradients


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
