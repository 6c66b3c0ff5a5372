"""What is asked: the plan, its questions, the answers of both models, and the scores that come from them."""

from typing import TYPE_CHECKING

from lit_semantic_peft.lazy import attach

if TYPE_CHECKING:
    from lit_semantic_peft.evaluation.answers import Answer, load_answers, store_answers
    from lit_semantic_peft.evaluation.evaluator import EVALUATION_VERSION, Comparison, Evaluator
    from lit_semantic_peft.evaluation.gated import GatedEvaluation, opens, through_gate
    from lit_semantic_peft.evaluation.plan import EvaluationPlan
    from lit_semantic_peft.evaluation.questions import (
        Question,
        dialogue_encoders,
        doubt_questions,
        doubted,
        fact_questions,
        prompt_questions,
        retention_questions,
    )
    from lit_semantic_peft.evaluation.result import Evaluation
    from lit_semantic_peft.evaluation.scores import RETENTION, SCORES, ScoreDefinition

# Loaded when first used: reports read the definitions of the scores, and need no torch for it.
_MODULE_OF = {
    "Answer": "answers",
    "load_answers": "answers",
    "store_answers": "answers",
    "Comparison": "evaluator",
    "EVALUATION_VERSION": "evaluator",
    "Evaluator": "evaluator",
    "GatedEvaluation": "gated",
    "opens": "gated",
    "through_gate": "gated",
    "EvaluationPlan": "plan",
    "Question": "questions",
    "dialogue_encoders": "questions",
    "doubt_questions": "questions",
    "doubted": "questions",
    "fact_questions": "questions",
    "prompt_questions": "questions",
    "retention_questions": "questions",
    "Evaluation": "result",
    "RETENTION": "scores",
    "SCORES": "scores",
    "ScoreDefinition": "scores",
}

__all__ = [
    "EVALUATION_VERSION",
    "RETENTION",
    "SCORES",
    "Answer",
    "Comparison",
    "Evaluation",
    "EvaluationPlan",
    "Evaluator",
    "GatedEvaluation",
    "Question",
    "ScoreDefinition",
    "dialogue_encoders",
    "doubt_questions",
    "doubted",
    "fact_questions",
    "load_answers",
    "opens",
    "prompt_questions",
    "retention_questions",
    "store_answers",
    "through_gate",
]

__getattr__, __dir__ = attach(__name__, _MODULE_OF)
