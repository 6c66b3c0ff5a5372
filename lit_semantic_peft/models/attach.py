"""A base model with an adapter: a new one from any PEFT configuration, or an exported one."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.adapter_state import adapter_state_dict
from lit_semantic_peft.models.base_files import BaseModelSource
from lit_semantic_peft.models.export import base_of
from lit_semantic_peft.models.peft_traits import base_changing_setting, traits_of

logger = logging.getLogger(__name__)


def attach_adapter(base: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Wraps a base model with a new, untrained adapter.

    The adapter's weights are drawn from torch's global generator; they are float32 whatever the base is.

    Args:
        base: The base model; its parameters get frozen.
        peft_config: Any configuration of `peft`. `task_type` becomes `CAUSAL_LM` when it is not set.

    Returns:
        The PEFT model.

    Raises:
        InputError: If `target_modules`, or one name in it, matches nothing; the message lists what would match. If
            disabling the adapter would not give back the base model, or something is trained that is not float32 or
            that a checkpoint would not hold.
    """
    if setting := base_changing_setting(peft_config):
        raise InputError(
            f"`peft_config` with `{setting}` cannot be used: it changes the base model itself, so that nothing could "
            "be compared with the model before training. Leave it out."
        )
    if peft_config.task_type is None:
        peft_config.task_type = "CAUSAL_LM"
    unmatched = _unmatched_names(base, peft_config)
    if unmatched:  # PEFT goes on as long as one name matches, and adapts less than was asked for
        raise _matches_nothing(base, unmatched)
    try:
        with _without_deprecations():
            model = get_peft_model(base, peft_config)
    except ValueError as error:
        if "target" not in str(error).lower() or "modules" not in str(error).lower():
            raise InputError(f"`peft_config`: {str(error).strip()}") from error
        raise _matches_nothing(base, getattr(peft_config, "target_modules", None)) from error
    constants = traits_of(model).constants
    for name, parameter in model.named_parameters():
        if any(constant in name for constant in constants):
            parameter.requires_grad_(False)
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise InputError(
                f"`peft_config` trains {name} in the base model's {str(parameter.dtype).removeprefix('torch.')}, where "
                "small steps are lost. Use `model.base_model.dtype: float32`."
            )
    kept = {value.data_ptr() for value in adapter_state_dict(model).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in kept:
            raise InputError(
                f"`peft_config` trains {name}, which PEFT neither saves nor exports, so that it would be lost. Use "
                "another `peft_config`."
            )
    return model


def load_adapter(base: PreTrainedModel, folder: str | Path, source: BaseModelSource) -> PeftModel:
    """Wraps a base model with an exported adapter, for inference.

    An adapter that fits, but was trained on other weights, is loaded with a warning.

    Args:
        base: The base model.
        folder: A folder as `export_adapter` or PEFT's `save_pretrained` writes it.
        source: Where the base model comes from.

    Raises:
        InputError: If the folder holds no adapter, or one of another model.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"`adapter` {str(folder)!r} holds no adapter (adapter_config.json is missing).")
    name, _, fingerprint = base_of(folder)
    try:
        with _without_deprecations():
            model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if not line.endswith(":")]
        remedy = "" if name in (source.name, source.public_name) else f" Use `--model.base_model {name}`."
        raise InputError(
            f"`adapter` {str(folder)!r} was trained on the base model {name!r} and does not fit {source.name!r}: "
            f"{lines[0].rstrip('.') if lines else type(error).__name__}.{remedy}"
        ) from error
    if fingerprint not in (None, source.fingerprint):
        logger.warning(
            "`adapter` %r was trained on the base model %r; with the weights of %r, which differ, its "
            "answers may differ.",
            str(folder),
            name,
            source.name,
        )
    return model


def linear_module_names(model: nn.Module) -> list[str]:
    """Last names of the linear modules, as `target_modules` takes them; the output projection left out."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    kinds = {"Linear", "Conv1D"}
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if type(module).__name__ in kinds and module is not output
        }
    )


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hides the warning that PEFT reads a property which transformers has renamed: no user can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _unmatched_names(base: PreTrainedModel, peft_config: PeftConfig) -> list[str]:
    """The names in a list of `target_modules` that no module has; a regular expression is left to PEFT."""
    targets = getattr(peft_config, "target_modules", None)
    if not isinstance(targets, list | set | tuple):
        return []
    modules = [f".{name}" for name, _ in base.named_modules()]
    return sorted(name for name in targets if not any(module.endswith(f".{name}") for module in modules))


def _matches_nothing(base: PreTrainedModel, target_modules: object) -> InputError:
    return InputError(
        f"`target_modules` {target_modules!r} matches no module of the base model. "
        f"What would match: {', '.join(linear_module_names(base))}, or `all-linear` for all of them."
    )
