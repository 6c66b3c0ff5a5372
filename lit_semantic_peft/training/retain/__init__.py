"""What is held still while facts are taught: predictions on sources of text, and directions of the layers' inputs."""

from lit_semantic_peft.training.retain.context_teacher import ContextTeacher
from lit_semantic_peft.training.retain.continuations import Continuations
from lit_semantic_peft.training.retain.holding import held_still
from lit_semantic_peft.training.retain.input_directions import HeldDirections, InputDirections
from lit_semantic_peft.training.retain.known_facts import KnownFacts
from lit_semantic_peft.training.retain.masked_target import MaskedTarget
from lit_semantic_peft.training.retain.neighbours import Neighbours
from lit_semantic_peft.training.retain.own_samples import OwnSamples
from lit_semantic_peft.training.retain.penalty import RetainPenalty
from lit_semantic_peft.training.retain.retain_split import RetainSplit
from lit_semantic_peft.training.retain.source import HeldStill, RetainedText, RetainSource
from lit_semantic_peft.training.retain.subject_samples import SubjectSamples
from lit_semantic_peft.training.retain.text import Text

__all__ = [
    "ContextTeacher",
    "Continuations",
    "HeldDirections",
    "HeldStill",
    "InputDirections",
    "KnownFacts",
    "MaskedTarget",
    "Neighbours",
    "OwnSamples",
    "RetainPenalty",
    "RetainSource",
    "RetainSplit",
    "RetainedText",
    "SubjectSamples",
    "Text",
    "held_still",
]
