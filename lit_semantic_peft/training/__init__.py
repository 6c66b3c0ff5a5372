"""The LightningModule that trains and evaluates an adapter."""

from lit_semantic_peft.data import Answer
from lit_semantic_peft.training.evaluation import Comparison, Evaluator
from lit_semantic_peft.training.module import SemanticPeftModule
from lit_semantic_peft.training.scores import Scores, measure_scores

__all__ = ["Answer", "Comparison", "Evaluator", "Scores", "SemanticPeftModule", "measure_scores"]
