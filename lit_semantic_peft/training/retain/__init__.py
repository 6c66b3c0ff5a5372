"""What is held still while facts are taught: sources of text on which the adapter must predict what the base does."""

from lit_semantic_peft.training.retain.context_teacher import ContextTeacher
from lit_semantic_peft.training.retain.continuations import Continuations
from lit_semantic_peft.training.retain.known_facts import KnownFacts
from lit_semantic_peft.training.retain.masked_target import MaskedTarget
from lit_semantic_peft.training.retain.neighbours import Neighbours
from lit_semantic_peft.training.retain.own_samples import OwnSamples
from lit_semantic_peft.training.retain.penalty import RetainPenalty, retain_penalty
from lit_semantic_peft.training.retain.retain_split import RetainSplit
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource
from lit_semantic_peft.training.retain.text import Text

__all__ = [
    "ContextTeacher",
    "Continuations",
    "KnownFacts",
    "MaskedTarget",
    "Neighbours",
    "OwnSamples",
    "RetainPenalty",
    "RetainSource",
    "RetainSplit",
    "RetainedText",
    "Text",
    "retain_penalty",
]
