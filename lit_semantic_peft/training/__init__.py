"""The LightningModule that trains and evaluates an adapter, and what makes its training aware of interference."""

from lit_semantic_peft.training.interference_aware import (
    ConflictAwareBatching,
    GradientSurgery,
    InterferenceWeighting,
)
from lit_semantic_peft.training.module import SemanticPeftModule
from lit_semantic_peft.training.recipe import Recipe, choose_recipe
from lit_semantic_peft.training.retain import (
    ContextTeacher,
    Continuations,
    HeldStill,
    InputDirections,
    KnownFacts,
    MaskedTarget,
    Neighbours,
    OwnSamples,
    RetainSource,
    RetainSplit,
    SubjectSamples,
    Text,
)
from lit_semantic_peft.training.sharding import ShardedBaseStrategy, whole_base

__all__ = [
    "ConflictAwareBatching",
    "ContextTeacher",
    "Continuations",
    "GradientSurgery",
    "HeldStill",
    "InputDirections",
    "InterferenceWeighting",
    "KnownFacts",
    "MaskedTarget",
    "Neighbours",
    "OwnSamples",
    "Recipe",
    "RetainSource",
    "RetainSplit",
    "SemanticPeftModule",
    "ShardedBaseStrategy",
    "SubjectSamples",
    "Text",
    "choose_recipe",
    "whole_base",
]
