"""Batches: from a file of facts to what a training step sees."""

from lit_semantic_peft.data.answers import Answer, AnswerCache
from lit_semantic_peft.data.cache import ScoreCache
from lit_semantic_peft.data.module import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.data.questions import (
    EvaluationPlan,
    Question,
    dialogue_encoders,
    doubted,
    fact_questions,
    prompt_questions,
)
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
    "dialogue_encoders",
    "doubted",
    "fact_questions",
    "prompt_questions",
]
