"""What is asked: the plan, its questions, the answers of both models, and the scores that come from them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_semantic_peft.evaluation.answers import Answer, load_answers, store_answers
    from lit_semantic_peft.evaluation.evaluator import EVALUATION_VERSION, Comparison, Evaluator
    from lit_semantic_peft.evaluation.measured_scores import Scores, measure_scores
    from lit_semantic_peft.evaluation.questions import (
        EvaluationPlan,
        Question,
        dialogue_encoders,
        doubt_questions,
        doubted,
        fact_questions,
        prompt_questions,
        retention_questions,
    )
    from lit_semantic_peft.evaluation.scores import SCORES, ScoreDefinition

# Loaded when first used: reports read the definitions of the scores, and need no torch for it.
_MODULE_OF = {
    "Answer": "answers",
    "load_answers": "answers",
    "store_answers": "answers",
    "Comparison": "evaluator",
    "EVALUATION_VERSION": "evaluator",
    "Evaluator": "evaluator",
    "Scores": "measured_scores",
    "measure_scores": "measured_scores",
    "EvaluationPlan": "questions",
    "Question": "questions",
    "dialogue_encoders": "questions",
    "doubt_questions": "questions",
    "doubted": "questions",
    "fact_questions": "questions",
    "prompt_questions": "questions",
    "retention_questions": "questions",
    "SCORES": "scores",
    "ScoreDefinition": "scores",
}

__all__ = [
    "EVALUATION_VERSION",
    "SCORES",
    "Answer",
    "Comparison",
    "EvaluationPlan",
    "Evaluator",
    "Question",
    "ScoreDefinition",
    "Scores",
    "dialogue_encoders",
    "doubt_questions",
    "doubted",
    "fact_questions",
    "load_answers",
    "measure_scores",
    "prompt_questions",
    "retention_questions",
    "store_answers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
