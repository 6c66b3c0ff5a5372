"""What is held still while facts are taught: sources of text on which the adapter must predict what the base does."""

from lit_semantic_peft.training.retain.known_facts import KnownFacts
from lit_semantic_peft.training.retain.own_samples import OwnSamples
from lit_semantic_peft.training.retain.penalty import RetainPenalty, retain_penalty
from lit_semantic_peft.training.retain.retain_split import RetainSplit
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource

__all__ = [
    "KnownFacts",
    "OwnSamples",
    "RetainPenalty",
    "RetainSource",
    "RetainSplit",
    "RetainedText",
    "retain_penalty",
]
