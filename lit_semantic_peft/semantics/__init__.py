"""How far a fact is from the model, and what follows: distances, scoring, filters, weightings."""

from lit_semantic_peft.semantics.confidence import FLOW, Focal, MediumConfidence
from lit_semantic_peft.semantics.dispersion import DispersionFilter
from lit_semantic_peft.semantics.distances import (
    Distance,
    ExpectedEmbeddingDistance,
    HiddenStateDistance,
    ResponseDistance,
    Surprisal,
    TargetPass,
)
from lit_semantic_peft.semantics.encoders import SentenceEncoder, TextEmbedding
from lit_semantic_peft.semantics.features import Feature, ScoringContext, TargetEmbedding
from lit_semantic_peft.semantics.filters import (
    BandFilter,
    FactFilter,
    FilterStep,
    KnownFilter,
    MeanVarianceFilter,
    NoFilter,
    PerRelation,
    RandomFilter,
    Selection,
    apply_filters,
)
from lit_semantic_peft.semantics.gradients import WarmGradients
from lit_semantic_peft.semantics.interference_filter import InterferenceFilter
from lit_semantic_peft.semantics.online import Online
from lit_semantic_peft.semantics.redundancy import RedundancyFilter
from lit_semantic_peft.semantics.scoring import (
    SCORING_VERSION,
    score_facts,
    score_pass,
    score_targets,
    scoring_parts,
    target_pass,
    with_answers,
)
from lit_semantic_peft.semantics.sentence_distance import SentenceDistance
from lit_semantic_peft.semantics.shaping import Scheduled, Tempered
from lit_semantic_peft.semantics.strata import STRATA, Strata, StrataFilter, strata_of, with_strata
from lit_semantic_peft.semantics.table import ScoredFacts
from lit_semantic_peft.semantics.token_weights import (
    ConfidenceGate,
    SemanticDistanceTerm,
    TokenDistance,
    TokenWeighting,
)
from lit_semantic_peft.semantics.weightings import (
    Band,
    Proximity,
    Remoteness,
    Uniform,
    Weighting,
    loss_weights,
    weights_of,
)

__all__ = [
    "FLOW",
    "SCORING_VERSION",
    "STRATA",
    "Band",
    "BandFilter",
    "ConfidenceGate",
    "DispersionFilter",
    "Distance",
    "ExpectedEmbeddingDistance",
    "FactFilter",
    "Feature",
    "FilterStep",
    "Focal",
    "HiddenStateDistance",
    "InterferenceFilter",
    "KnownFilter",
    "MeanVarianceFilter",
    "MediumConfidence",
    "NoFilter",
    "Online",
    "PerRelation",
    "Proximity",
    "RandomFilter",
    "RedundancyFilter",
    "Remoteness",
    "ResponseDistance",
    "Scheduled",
    "ScoredFacts",
    "ScoringContext",
    "Selection",
    "SemanticDistanceTerm",
    "SentenceDistance",
    "SentenceEncoder",
    "Strata",
    "StrataFilter",
    "Surprisal",
    "TargetEmbedding",
    "TargetPass",
    "Tempered",
    "TextEmbedding",
    "TokenDistance",
    "TokenWeighting",
    "Uniform",
    "WarmGradients",
    "Weighting",
    "apply_filters",
    "loss_weights",
    "score_facts",
    "score_pass",
    "score_targets",
    "scoring_parts",
    "strata_of",
    "target_pass",
    "weights_of",
    "with_answers",
    "with_strata",
]
