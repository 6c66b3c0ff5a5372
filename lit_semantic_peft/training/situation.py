"""What the rules of `compatibility` need to know of a module."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lit_semantic_peft.models import base_changing_setting, traits_of
from lit_semantic_peft.models.library_versions import misreads_cache
from lit_semantic_peft.models.peft_settings import is_plain_lora
from lit_semantic_peft.situation import Situation

if TYPE_CHECKING:
    from lit_semantic_peft.training.module import SemanticPeftModule


def with_settings_of(module: "SemanticPeftModule", situation: Situation) -> Situation:
    """A situation with a module's settings.

    Args:
        module: The module.
        situation: Of its trainer and data module.
    """
    traits = traits_of(module.peft_config)
    return replace(
        situation,
        peft_config=type(module.peft_config).__name__,
        checkpointing_obstacle=traits.cannot.get("gradient_checkpointing"),
        routes_by_prompts=traits.routes,
        has_gate=module.gate is not None,
        has_virtual_tokens=traits.virtual_tokens != "none",
        reads_gradients="loss_scaling" in traits.cannot,
        base_changing_setting=base_changing_setting(module.peft_config) if situation.stage == "fit" else None,
        adapter=module.adapter,
        gradient_checkpointing=module.gradient_checkpointing,
        reuse_frozen_layers=module.reuse_frozen_layers,
        retains=frozenset(source.kind for source in module.retain),
        schedule=module.schedule,
        warmup_ratio=module.warmup_ratio,
        quantized_dtype=module.base_model.quantized_dtype if situation.is_sharded else None,
        is_plain_lora=is_plain_lora(module.peft_config),
        misreads_virtual_tokens=misreads_cache(),
    )
