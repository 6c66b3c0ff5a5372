"""The LightningModule that trains and evaluates an adapter."""

from lit_semantic_peft.training.module import Answer, Comparison, SemanticPeftModule
from lit_semantic_peft.training.sharding import ShardedBaseStrategy

__all__ = ["Answer", "Comparison", "SemanticPeftModule", "ShardedBaseStrategy"]
