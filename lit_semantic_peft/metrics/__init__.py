"""Metrics per fact, as sums and counts that add up over processes, and the rules by which an answer is correct."""

from lit_semantic_peft.metrics.alone_versus_together import AloneVersusTogether
from lit_semantic_peft.metrics.fact_scores import (
    Efficacy,
    FactScore,
    Generalization,
    Locality,
    Portability,
    Robustness,
    YesNo,
)
from lit_semantic_peft.metrics.functional import (
    distance_decile,
    group_interference,
    interference_summary,
    is_pushed_away,
    kl_from_likeliest,
    likeliest_tokens,
    mean_over_facts,
    per_fact_mean,
    share,
    target_probability,
)
from lit_semantic_peft.metrics.gradient_interference import GradientInterference
from lit_semantic_peft.metrics.key_overlap import KeyOverlap
from lit_semantic_peft.metrics.learning_dynamics import LearningDynamics
from lit_semantic_peft.metrics.per_fact import MeanOverFacts, PerFactMean, PushedAway
from lit_semantic_peft.metrics.retention import Retention
from lit_semantic_peft.metrics.text import is_exact_match, normalize_answer, starts_with_answer

__all__ = [
    "AloneVersusTogether",
    "Efficacy",
    "FactScore",
    "Generalization",
    "GradientInterference",
    "KeyOverlap",
    "LearningDynamics",
    "Locality",
    "MeanOverFacts",
    "PerFactMean",
    "Portability",
    "PushedAway",
    "Retention",
    "Robustness",
    "YesNo",
    "distance_decile",
    "group_interference",
    "interference_summary",
    "is_exact_match",
    "is_pushed_away",
    "kl_from_likeliest",
    "likeliest_tokens",
    "mean_over_facts",
    "normalize_answer",
    "per_fact_mean",
    "share",
    "starts_with_answer",
    "target_probability",
]
