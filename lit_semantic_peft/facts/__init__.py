"""What a fact is. Reads files, sets and benchmarks into one contract; knows nothing of tensors."""

from lit_semantic_peft.facts.builtin import BUILTIN, builtin_facts
from lit_semantic_peft.facts.checks import (
    Contradiction,
    NearDuplicate,
    find_contradictions,
    find_near_duplicates,
    normalize_text,
)
from lit_semantic_peft.facts.readers import SPLIT_SYNONYMS, SUFFIXES, read_facts
from lit_semantic_peft.facts.schema import SPLITS, Fact, FactSet, Probe, Split, facts_key

__all__ = [
    "BUILTIN",
    "SPLITS",
    "SPLIT_SYNONYMS",
    "SUFFIXES",
    "Contradiction",
    "Fact",
    "FactSet",
    "NearDuplicate",
    "Probe",
    "Split",
    "builtin_facts",
    "facts_key",
    "find_contradictions",
    "find_near_duplicates",
    "normalize_text",
    "read_facts",
]
