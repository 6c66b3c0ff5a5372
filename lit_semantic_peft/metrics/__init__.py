"""What is measured per fact: sums and counts that add up over processes, and when an answer counts as right."""

from lit_semantic_peft.metrics.alone_versus_together import AloneVersusTogether
from lit_semantic_peft.metrics.functional import (
    distance_decile,
    group_interference,
    interference_summary,
    is_pushed_away,
    mean_over_facts,
    per_fact_mean,
    share,
)
from lit_semantic_peft.metrics.gradient_interference import GradientInterference
from lit_semantic_peft.metrics.key_overlap import KeyOverlap
from lit_semantic_peft.metrics.learning_dynamics import LearningDynamics
from lit_semantic_peft.metrics.per_fact import MeanOverFacts, PerFactMean, PushedAway, RecallOverFacts
from lit_semantic_peft.metrics.text import is_exact_match, normalize_answer, starts_with_answer

__all__ = [
    "AloneVersusTogether",
    "GradientInterference",
    "KeyOverlap",
    "LearningDynamics",
    "MeanOverFacts",
    "PerFactMean",
    "PushedAway",
    "RecallOverFacts",
    "distance_decile",
    "group_interference",
    "interference_summary",
    "is_exact_match",
    "is_pushed_away",
    "mean_over_facts",
    "normalize_answer",
    "per_fact_mean",
    "share",
    "starts_with_answer",
]
