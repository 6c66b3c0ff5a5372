"""The forms in which a fact is taught, checked during training, and asked at the end."""

from lit_semantic_peft.facts.forms.frames import asked_question, asked_reversed, reversible
from lit_semantic_peft.facts.forms.sources import (
    Cloze,
    FormContext,
    FormSource,
    Given,
    InContext,
    OfferedForms,
    Question,
    Reversed,
    Templates,
)
from lit_semantic_peft.facts.forms.split import FactForms, TaughtForm, split_forms
from lit_semantic_peft.facts.forms.templates import builtin_templates, read_templates, relations_without

__all__ = [
    "Cloze",
    "FactForms",
    "FormContext",
    "FormSource",
    "Given",
    "InContext",
    "OfferedForms",
    "Question",
    "Reversed",
    "TaughtForm",
    "Templates",
    "asked_question",
    "asked_reversed",
    "builtin_templates",
    "read_templates",
    "relations_without",
    "reversible",
    "split_forms",
]
