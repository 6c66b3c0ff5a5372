"""Batches: from a file of facts to what a training step sees."""

from lit_semantic_peft.data.cache import ScoreCache
from lit_semantic_peft.data.module import KnowledgeDataModule
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.ranks import agreed, from_all_ranks
from lit_semantic_peft.data.samplers import MicroBatch, RankShard, StepPlan

__all__ = [
    "KnowledgeDataModule",
    "MicroBatch",
    "PreparedFacts",
    "RankShard",
    "ScoreCache",
    "StepPlan",
    "agreed",
    "from_all_ranks",
]
