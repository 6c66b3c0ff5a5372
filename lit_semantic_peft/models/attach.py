"""A base model with an adapter: a new one from any PEFT configuration, or an exported one."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.adapter_state import adapter_state_dict, load_exported_tensors
from lit_semantic_peft.models.base_files import BaseModelSource, first_line
from lit_semantic_peft.models.export import base_of
from lit_semantic_peft.models.peft_bounds import BoundedMemory, refuse_unbounded
from lit_semantic_peft.models.peft_settings import (
    exceptions_of_nothing,
    setting_of_nothing,
    start_that_embeddings_lack,
    training_obstacle,
)
from lit_semantic_peft.models.peft_traits import trained_tokens, traits_of
from lit_semantic_peft.models.quantized import refuse_packed_reading
from lit_semantic_peft.models.saved_adapter import read_adapter
from lit_semantic_peft.models.targets import linear_module_names, suggestion, unmatched_names

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
        InputError: If PEFT refuses the configuration for this model; the message has its reason, and `target_modules`
            that would work. If a name in a setting matches nothing, nothing is trained, the method would not be
            trained wholly (`training_obstacle`), an embedding layer lacks `init_lora_weights`, or something is trained
            that is not float32 or that a checkpoint would not hold.
    """
    if obstacle := training_obstacle(peft_config):
        raise InputError(obstacle)
    unmatched = unmatched_names(base, peft_config)
    if unmatched:  # PEFT goes on as long as one name matches, and adapts less than was asked for
        raise _matches_nothing(base, unmatched)
    num_embeddings = base.get_input_embeddings().weight.shape[0]
    if outside := [token for token in trained_tokens(peft_config) if not 0 <= token < num_embeddings]:
        raise InputError(f"`peft_config`: {outside[0]} is no token id of the base model: 0 to {num_embeddings - 1}")
    model = _wrapped(base, peft_config)
    if nothing := setting_of_nothing(base, peft_config):
        raise InputError(f"`peft_config`: {nothing} names nothing in the base model. Correct it, or leave it out.")
    for name in exceptions_of_nothing(base, peft_config):
        logger.warning("`peft_config`: `exclude_modules`: %r names nothing in the base model.", name)
    _require_start(model, peft_config)
    constants = traits_of(model).constants
    for name, parameter in model.named_parameters():
        if any(constant in name for constant in constants):
            parameter.requires_grad_(False)
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise InputError(
                f"`peft_config` trains {name} in the base model's {str(parameter.dtype).removeprefix('torch.')}, where "
                "small steps are lost. Use `model.base_model.dtype: float32`."
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            f"`peft_config`: {type(peft_config).__name__} trains nothing in this model.{suggestion(base, peft_config)}"
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
    """Wraps a base model with an exported adapter, for inference. It is applied wholly, or refused.

    An adapter that fits, but was trained on other weights, is loaded with a warning.

    Args:
        base: The base model.
        folder: A folder as `export_adapter` or PEFT's `save_pretrained` writes it.
        source: Where the base model comes from.

    Raises:
        InputError: If the folder holds no adapter, a damaged one, one of another model, other tensors than its
            configuration makes on this model (each that differs is named), or if the model cannot run with it.
    """
    saved = read_adapter(folder)
    if reason := traits_of(saved.config).cannot.get("use"):
        raise InputError(f"`adapter` {str(folder)!r}: {type(saved.config).__name__} {reason}.")
    name, _, fingerprint = base_of(folder)
    try:
        model = _wrapped(base, saved.config)
        load_exported_tensors(model, saved.tensors)
        require_answer(model.eval())
    except InputError as error:
        is_own_base = name in (None, source.name, source.public_name)
        remedy = "Export it again, or copy it again." if is_own_base else f"Use `--model.base_model {name}`."
        raise InputError(
            f"`adapter` {str(folder)!r} was trained on the base model {name!r} and does not fit {source.name!r}: "
            f"{str(error).rstrip('.')}. {remedy}"
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


def recompute_activations(model: PeftModel) -> None:
    """Turns gradient checkpointing on: the backward pass computes the layers' activations again.

    Args:
        model: A model with an adapter.
    """
    base = model.get_base_model()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # A hook that only reentrant checkpoints need, and that cannot be sent to a spawned process.
    base.disable_input_require_grads()


def require_answer(model: PeftModel) -> None:
    """Runs a model with its adapter on four tokens.

    Args:
        model: The model.

    Raises:
        InputError: If its forward pass fails, or gives logits that are not finite.
    """
    ids = torch.arange(4, device=model.device)[None] + 2
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except Exception as error:  # whatever a layer raises that gets what it does not expect
        config = model.active_peft_config
        raise InputError(
            f"`peft_config`: the base model {model.config.model_type!r} cannot run with {type(config).__name__} "
            f"({type(error).__name__}: {first_line(error)}).{suggestion(model.get_base_model(), config)}"
        ) from error
    if not bool(logits.isfinite().all()):
        raise InputError("`peft_config`: with this adapter the base model's logits are not finite.")


def _wrapped(base: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """The base model with an adapter as PEFT makes it, within bounds of time and memory."""
    if peft_config.task_type is None:
        peft_config.task_type = "CAUSAL_LM"
    if peft_config.task_type != "CAUSAL_LM":
        raise InputError(f"`peft_config`: `task_type` must be CAUSAL_LM or left out, got {peft_config.task_type!r}")
    refuse_unbounded(peft_config, [name for name, _ in base.named_modules()])
    try:
        with _without_remarks(), BoundedMemory(base):
            model = get_peft_model(base, peft_config)
        refuse_packed_reading(model)
        return model
    except InputError:
        raise
    except Exception as error:  # each method has its own types for what it cannot do
        if "not found in the base model" in str(error):
            raise _matches_nothing(base, getattr(peft_config, "target_modules", None)) from error
        reason = first_line(error) or type(error).__name__
        raise InputError(f"`peft_config`: {reason.rstrip('.')}.{suggestion(base, peft_config)}") from error


def _require_start(model: PeftModel, peft_config: PeftConfig) -> None:
    """Refuses a start of LoRA's factors that PEFT's embedding layers do not have: they take the default, unsaid."""
    if (start := start_that_embeddings_lack(peft_config)) is None:
        return
    layers = [name for name, module in model.named_modules() if getattr(module, "lora_embedding_A", None)]
    if layers:
        raise InputError(
            f"`peft_config`: PEFT has no `{start}` for an embedding layer, and would start "
            f"{layers[0].removeprefix('base_model.model.')} by default. Leave that setting out, or the layer "
            "out of `target_modules`."
        )


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Hides warnings that no user can act on: of a property that transformers has renamed, of the base's own name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*`base_model_name_or_path` was renamed.*")
        yield


def _matches_nothing(base: PreTrainedModel, target_modules: object) -> InputError:
    return InputError(
        f"`target_modules` {target_modules!r} matches no module of the base model. "
        f"What would match: {', '.join(linear_module_names(base))}, or `all-linear` for all of them."
    )
