"""Batches: from a file of facts to what a training step sees."""

from typing import TYPE_CHECKING

from lit_semantic_peft.lazy import attach

if TYPE_CHECKING:
    from lit_semantic_peft.data.gradients import interference_matrix
    from lit_semantic_peft.data.module import KnowledgeDataModule
    from lit_semantic_peft.data.plans import BatchPlan, EncodingPlan, FormsPlan, SelectionPlan
    from lit_semantic_peft.data.prepared import PreparedFacts
    from lit_semantic_peft.data.ranks import agreed, from_all_ranks
    from lit_semantic_peft.data.samplers import MicroBatch, RankShard, StepPlan
    from lit_semantic_peft.data.scoring import FactScores, score

# Loaded when first used: only the data module needs Lightning.
_MODULE_OF = {
    "BatchPlan": "plans",
    "EncodingPlan": "plans",
    "FactScores": "scoring",
    "FormsPlan": "plans",
    "KnowledgeDataModule": "module",
    "MicroBatch": "samplers",
    "PreparedFacts": "prepared",
    "RankShard": "samplers",
    "SelectionPlan": "plans",
    "StepPlan": "samplers",
    "agreed": "ranks",
    "from_all_ranks": "ranks",
    "interference_matrix": "gradients",
    "score": "scoring",
}

__all__ = [
    "BatchPlan",
    "EncodingPlan",
    "FactScores",
    "FormsPlan",
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

__getattr__, __dir__ = attach(__name__, _MODULE_OF)
