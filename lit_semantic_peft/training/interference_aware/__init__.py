"""Training that reads the gradient matrix: which facts share a step, their weights, conflicts in their gradients."""

from lit_semantic_peft.training.interference_aware.conflict_aware_batching import ConflictAwareBatching
from lit_semantic_peft.training.interference_aware.gradient_surgery import GradientSurgery
from lit_semantic_peft.training.interference_aware.interference_weighting import InterferenceWeighting

__all__ = ["ConflictAwareBatching", "GradientSurgery", "InterferenceWeighting"]
