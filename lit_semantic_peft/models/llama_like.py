"""Which models can be run piecewise: known by their backbone, not by trial."""

from typing import Any

from peft import PeftModel
from torch import nn

from lit_semantic_peft.errors import InputError

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures (`config.model_type`) whose backbone is embedding, equal layers with full causal attention, norm."""


def is_llama_like(model: nn.Module) -> bool:
    """Whether the backbone is one that `llama_backbone` takes, without virtual tokens before or beside the input.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.
    """
    return not _obstacle(model)


def llama_backbone(model: nn.Module, option: str) -> Any:
    """The backbone (`embed_tokens`, `layers`, `norm`) of a Llama-like causal language model.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.
        option: The option that needs it, for the message.

    Raises:
        InputError: If the model is of another kind.
    """
    obstacle = _obstacle(model)
    if obstacle:
        raise InputError(
            f"`{option}` works on {', '.join(LLAMA_LIKE)} with full attention (sdpa or eager) and an adapter inside "
            f"the layers; here {obstacle}. Leave `{option}` out."
        )
    return _base(model).model


def _base(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _obstacle(model: nn.Module) -> str:
    config = getattr(_base(model), "config", None)
    kind = getattr(config, "model_type", type(_base(model)).__name__)
    if kind not in LLAMA_LIKE or not hasattr(_base(model), "model"):
        return f"the model is of type {kind!r}"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return f"its layers are of the types {sorted(set(config.layer_types))}"
    if kind == "mistral" and config.sliding_window is not None:
        return f"it attends within a window of {config.sliding_window} tokens"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention is computed by {config._attn_implementation!r}"
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return f"the adapter is of type {model.active_peft_config.peft_type.value}"
    return ""
