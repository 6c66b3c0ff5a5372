"""The LightningModule that trains and evaluates an adapter, and what makes its training aware of interference."""

from lit_semantic_peft.data import Answer
from lit_semantic_peft.training.conflict_aware_batching import ConflictAwareBatching
from lit_semantic_peft.training.evaluation import Comparison, Evaluator
from lit_semantic_peft.training.gradient_surgery import GradientSurgery
from lit_semantic_peft.training.interference_weighting import InterferenceWeighting
from lit_semantic_peft.training.module import SemanticPeftModule
from lit_semantic_peft.training.scores import Scores, measure_scores
from lit_semantic_peft.training.sharding import ShardedBaseStrategy, whole_base

__all__ = [
    "Answer",
    "Comparison",
    "ConflictAwareBatching",
    "Evaluator",
    "GradientSurgery",
    "InterferenceWeighting",
    "Scores",
    "SemanticPeftModule",
    "ShardedBaseStrategy",
    "measure_scores",
    "whole_base",
]
