"""Batches: from a file of facts to what a training step sees."""

from lit_semantic_peft.data.answers import Answer, AnswerCache
from lit_semantic_peft.data.cache import ScoreCache
from lit_semantic_peft.data.module import KnowledgeDataModule
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.questions import (
    EvaluationPlan,
    Question,
    dialogue_encoders,
    doubted,
    fact_questions,
    prompt_questions,
)
from lit_semantic_peft.data.ranks import agreed, from_all_ranks
from lit_semantic_peft.data.samplers import MicroBatch, RankShard, StepPlan

__all__ = [
    "Answer",
    "AnswerCache",
    "EvaluationPlan",
    "KnowledgeDataModule",
    "MicroBatch",
    "PreparedFacts",
    "Question",
    "RankShard",
    "ScoreCache",
    "StepPlan",
    "agreed",
    "dialogue_encoders",
    "doubted",
    "fact_questions",
    "from_all_ranks",
    "prompt_questions",
]
