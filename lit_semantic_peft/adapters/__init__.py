"""Adapters of papers beside those of peft, whose own functions handle them after this import; a gate around any."""

from lit_semantic_peft.adapters.anchors import Anchors
from lit_semantic_peft.adapters.by_names import prompts_are
from lit_semantic_peft.adapters.flora import FLoRAConfig, as_lora
from lit_semantic_peft.adapters.knowledge_moe import KnowledgeMoEConfig
from lit_semantic_peft.adapters.subject_lora import SubjectLoraConfig
from lit_semantic_peft.adapters.subjects import SubjectGate, SubjectTable

__all__ = [
    "Anchors",
    "FLoRAConfig",
    "KnowledgeMoEConfig",
    "SubjectGate",
    "SubjectLoraConfig",
    "SubjectTable",
    "as_lora",
    "prompts_are",
]
