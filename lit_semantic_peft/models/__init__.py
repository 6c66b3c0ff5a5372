"""What learns: base models, adapters, the loss of a fact, free answers. Knows nothing of Lightning."""

from lit_semantic_peft.models.adapter_state import adapter_state_dict, load_adapter_state_dict
from lit_semantic_peft.models.attach import attach_adapter, load_adapter
from lit_semantic_peft.models.base import BaseDtype, BaseModel
from lit_semantic_peft.models.base_files import DEFAULT_BASE_MODEL, BaseModelSource
from lit_semantic_peft.models.export import export_adapter, export_merged
from lit_semantic_peft.models.frozen_layers import FrozenLayers, frozen_layers_obstacle
from lit_semantic_peft.models.gated import GatedModel, load_gated
from lit_semantic_peft.models.generation import greedy_answers, greedy_continuations, prompt_cache
from lit_semantic_peft.models.objective import fact_nll, target_logits, token_nll, weight_normalizer
from lit_semantic_peft.models.peft_settings import base_changing_setting
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of

__all__ = [
    "DEFAULT_BASE_MODEL",
    "BaseDtype",
    "BaseModel",
    "BaseModelSource",
    "FrozenLayers",
    "GatedModel",
    "adapter_state_dict",
    "attach_adapter",
    "base_changing_setting",
    "export_adapter",
    "export_merged",
    "fact_nll",
    "frozen_layers_obstacle",
    "greedy_answers",
    "greedy_continuations",
    "load_adapter",
    "load_adapter_state_dict",
    "load_gated",
    "peft_type_name",
    "prompt_cache",
    "target_logits",
    "token_nll",
    "traits_of",
    "weight_normalizer",
]
