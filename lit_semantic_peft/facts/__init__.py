"""What a fact is. Reads files, sets and benchmarks into one contract; knows nothing of tensors."""

from lit_semantic_peft.facts.builtin import BUILTIN, builtin_facts
from lit_semantic_peft.facts.checks import (
    Contradiction,
    NearDuplicate,
    NearDuplicateGroup,
    find_contradictions,
    find_near_duplicates,
    group_near_duplicates,
    normalize_text,
)
from lit_semantic_peft.facts.containers import SUFFIXES
from lit_semantic_peft.facts.contract import SPLIT_SYNONYMS
from lit_semantic_peft.facts.formats import FORMATS
from lit_semantic_peft.facts.given import given_facts
from lit_semantic_peft.facts.in_memory import GivenFacts, names_of, set_name
from lit_semantic_peft.facts.libraries import DEFAULT_DATASET_SPLIT
from lit_semantic_peft.facts.readers import FORMAT_NAMES, read_facts
from lit_semantic_peft.facts.schema import SPLITS, Conversion, Fact, FactSet, Form, Omission, Probe, Split, facts_key
from lit_semantic_peft.facts.writers import OUTPUT_SUFFIXES, convert, output_path, write_facts, write_output

__all__ = [
    "BUILTIN",
    "DEFAULT_DATASET_SPLIT",
    "FORMATS",
    "FORMAT_NAMES",
    "OUTPUT_SUFFIXES",
    "SPLITS",
    "SPLIT_SYNONYMS",
    "SUFFIXES",
    "Contradiction",
    "Conversion",
    "Fact",
    "FactSet",
    "Form",
    "GivenFacts",
    "NearDuplicate",
    "NearDuplicateGroup",
    "Omission",
    "Probe",
    "Split",
    "builtin_facts",
    "convert",
    "facts_key",
    "find_contradictions",
    "find_near_duplicates",
    "given_facts",
    "group_near_duplicates",
    "names_of",
    "normalize_text",
    "output_path",
    "read_facts",
    "set_name",
    "write_facts",
    "write_output",
]
