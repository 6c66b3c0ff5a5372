"""How a fact is tokenized: the prompt | target boundary, templates, batches."""

from lit_semantic_peft.tokens.collate import IGNORE_INDEX, Batch, collate
from lit_semantic_peft.tokens.encoding import EncodedFact, FactEncoder, Template
from lit_semantic_peft.tokens.prefix_tree import PrefixTree, cheaper_tree, prefix_tree

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "EncodedFact",
    "FactEncoder",
    "PrefixTree",
    "Template",
    "cheaper_tree",
    "collate",
    "prefix_tree",
]
