"""How far a fact is from the model, and what follows: distances, scoring, filters, weightings."""

from lit_semantic_peft.semantics.distances import (
    Distance,
    ExpectedEmbeddingDistance,
    HiddenStateDistance,
    ResponseDistance,
    Surprisal,
    TargetPass,
)
from lit_semantic_peft.semantics.filters import (
    BandFilter,
    FactFilter,
    KnownFilter,
    MeanVarianceFilter,
    NoFilter,
    RandomFilter,
    Selection,
    apply_filters,
)
from lit_semantic_peft.semantics.scoring import SCORING_VERSION, score_facts, score_pass, score_targets, target_pass
from lit_semantic_peft.semantics.table import ScoredFacts
from lit_semantic_peft.semantics.weightings import Band, Proximity, Remoteness, Uniform, Weighting, loss_weights

__all__ = [
    "SCORING_VERSION",
    "Band",
    "BandFilter",
    "Distance",
    "ExpectedEmbeddingDistance",
    "FactFilter",
    "HiddenStateDistance",
    "KnownFilter",
    "MeanVarianceFilter",
    "NoFilter",
    "Proximity",
    "RandomFilter",
    "Remoteness",
    "ResponseDistance",
    "ScoredFacts",
    "Selection",
    "Surprisal",
    "TargetPass",
    "Uniform",
    "Weighting",
    "apply_filters",
    "loss_weights",
    "score_facts",
    "score_pass",
    "score_targets",
    "target_pass",
]
