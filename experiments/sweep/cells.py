"""Which pairs of a model family and an adapter type are checked, and in which order."""

import random

from experiments.sweep.families import family_names
from experiments.sweep.ledger import Cell
from experiments.sweep.methods import method_names

EVERYWHERE = ("LORA", "IA3", "PREFIX_TUNING", "TRAINABLE_TOKENS")
"""Adapter types that are checked on every family: low rank, scaling, virtual tokens in the cache, trained rows."""

IN_DEPTH = ("llama", "gpt2", "mamba", "mixtral", "gemma3_text", "roberta")
"""Families that every adapter type is checked on: the last was born an encoder."""

SAMPLE_SIZE = 200


def all_cells() -> list[Cell]:
    """The cells, those that are likeliest to be wrong first: the default adapter, then the six families."""
    families, methods = family_names(), method_names()
    everywhere = [Cell(family, method) for method in EVERYWHERE for family in families]
    in_depth = [Cell(family, method) for family in IN_DEPTH for method in methods if method not in EVERYWHERE]
    chosen = {*everywhere, *in_depth}
    rest = [cell for family in families for method in methods if (cell := Cell(family, method)) not in chosen]
    sample = random.Random(0).sample(rest, SAMPLE_SIZE)
    return [*everywhere[: len(families)], *in_depth, *everywhere[len(families) :], *sample]
