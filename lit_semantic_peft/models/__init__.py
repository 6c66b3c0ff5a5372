"""What learns: base models, adapters, the loss of a fact, free answers. Knows nothing of Lightning."""

from lit_semantic_peft.models.adapters import (
    adapter_state_dict,
    attach_adapter,
    export_adapter,
    export_merged,
    load_adapter,
    load_adapter_state_dict,
)
from lit_semantic_peft.models.base import (
    DEFAULT_BASE_MODEL,
    BaseDtype,
    BaseModelSource,
    load_base_model,
    load_tokenizer,
    resolve_base_model,
)
from lit_semantic_peft.models.frozen_layers import FrozenLayers
from lit_semantic_peft.models.generation import greedy_answers
from lit_semantic_peft.models.llama_like import LLAMA_LIKE, is_llama_like, llama_backbone
from lit_semantic_peft.models.objective import fact_nll, target_logits, token_nll, weight_normalizer
from lit_semantic_peft.models.prefix_tree import PrefixTree, prefix_tree

__all__ = [
    "DEFAULT_BASE_MODEL",
    "LLAMA_LIKE",
    "BaseDtype",
    "BaseModelSource",
    "FrozenLayers",
    "PrefixTree",
    "adapter_state_dict",
    "attach_adapter",
    "export_adapter",
    "export_merged",
    "fact_nll",
    "greedy_answers",
    "is_llama_like",
    "llama_backbone",
    "load_adapter",
    "load_adapter_state_dict",
    "load_base_model",
    "load_tokenizer",
    "prefix_tree",
    "resolve_base_model",
    "target_logits",
    "token_nll",
    "weight_normalizer",
]
