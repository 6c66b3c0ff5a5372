"""A small configuration of every adapter type of the installed peft, for any model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import peft
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.targets import linear_module_names
from peft import PeftConfig, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import PreTrainedModel

_CLASSES: dict[str, Any] = {str(kind.value): of for kind, of in PEFT_TYPE_TO_CONFIG_MAPPING.items()}

_SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 8, "tinit": 1, "tfinal": 3, "init_r": 4, "target_r": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "CPT": {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 16},
    "IA3": {"feedforward_modules": []},
    "LORA": {"target_modules": "all-linear"},
    "OFT": {"r": 0, "oft_block_size": 8},
    "P_TUNING": {"encoder_hidden_size": 8},
    "ROAD": {"group_size": 16},
    "SHADOW": {"auxiliary_loss_weight": 0.0},
    "TRAINABLE_TOKENS": {"token_indices": [39, 44, 20, 58]},  # of the first facts of `checks`
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"num_vectors": 8, "vector_length": 8},
    "WAVEFT": {"n_frequency": 16},
}
_NUM_VIRTUAL_TOKENS = 3

_TARGETS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "LN_TUNING": lambda base: sorted({name for name, kind in _modules(base) if "Norm" in type(kind).__name__})[:2],
    "TRAINABLE_TOKENS": lambda base: [
        name for name, module in _modules(base) if module is base.get_input_embeddings()
    ],
}  # fmt: skip


def method_names() -> list[str]:
    """PEFT's names of its adapter types."""
    return list(_CLASSES)


def adapter_config(method: str, base: PreTrainedModel) -> PeftConfig:
    """A configuration of an adapter type, on the first two kinds of linear layers where it adapts linear layers.

    Args:
        method: One of `method_names`.
        base: The model that it shall adapt.

    Raises:
        InputError: If it needs a package that is not installed.
    """
    kind = _CLASSES[method]
    fields = {field.name for field in dataclasses.fields(kind)}
    settings: dict[str, Any] = {}
    if "r" in fields:
        settings["r"] = 4
    if "target_modules" in fields and not issubclass(kind, peft.AdaptionPromptConfig):
        targets: Callable[[PreTrainedModel], Any] = _TARGETS.get(method, _two_linear_layers)
        settings["target_modules"] = targets(base)
    if issubclass(kind, PromptLearningConfig):
        settings["num_virtual_tokens"] = _NUM_VIRTUAL_TOKENS
    try:
        config: PeftConfig = kind(task_type="CAUSAL_LM", **{**settings, **_SETTINGS.get(method, {})})
    except ImportError as error:  # as the command line does
        raise InputError(f"`peft_config`: {error}") from error
    return config


def _two_linear_layers(base: PreTrainedModel) -> list[str]:
    return linear_module_names(base)[:2]


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with the last part of its name."""
    return [(name.rpartition(".")[2], module) for name, module in model.named_modules() if name]
