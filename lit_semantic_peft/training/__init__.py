"""The LightningModule that trains and evaluates an adapter, and what makes its training aware of interference."""

from lit_semantic_peft.training.conflict_aware_batching import ConflictAwareBatching
from lit_semantic_peft.training.gradient_surgery import GradientSurgery
from lit_semantic_peft.training.interference_weighting import InterferenceWeighting
from lit_semantic_peft.training.module import Answer, Comparison, SemanticPeftModule
from lit_semantic_peft.training.sharding import ShardedBaseStrategy, whole_base

__all__ = [
    "Answer",
    "Comparison",
    "ConflictAwareBatching",
    "GradientSurgery",
    "InterferenceWeighting",
    "SemanticPeftModule",
    "ShardedBaseStrategy",
    "whole_base",
]
