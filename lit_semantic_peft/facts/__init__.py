"""What a fact is. Reads files, sets and benchmarks into one contract; knows nothing of tensors."""

from lit_semantic_peft.facts.schema import SPLITS, Fact, Probe, Split, facts_key

__all__ = ["SPLITS", "Fact", "Probe", "Split", "facts_key"]
