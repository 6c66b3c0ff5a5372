"""Batches: from a file of facts to what a training step sees."""

from lit_semantic_peft.data.gradients import interference_matrix
from lit_semantic_peft.data.module import KnowledgeDataModule
from lit_semantic_peft.data.plans import BatchPlan, EncodingPlan, SelectionPlan
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.ranks import agreed, from_all_ranks
from lit_semantic_peft.data.samplers import MicroBatch, RankShard, StepPlan
from lit_semantic_peft.data.scoring import FactScores, score

__all__ = [
    "BatchPlan",
    "EncodingPlan",
    "FactScores",
    "KnowledgeDataModule",
    "MicroBatch",
    "PreparedFacts",
    "RankShard",
    "SelectionPlan",
    "StepPlan",
    "agreed",
    "from_all_ranks",
    "interference_matrix",
    "score",
]
