"""The facts that a function is given: named, read already, or made by hand."""

import logging
import os
from collections import Counter
from collections.abc import Sequence

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.containers import DEFAULT_DATASET_SPLIT
from lit_semantic_peft.facts.readers import read_facts
from lit_semantic_peft.facts.schema import Fact, FactSet

logger = logging.getLogger(__name__)

GivenFacts = str | os.PathLike[str] | FactSet | Sequence[Fact]
"""A source that `read_facts` takes, what it returned, or facts."""


def given_facts(
    facts: GivenFacts, *, num_facts: int | None = None, seed: int = 0, dataset_split: str = DEFAULT_DATASET_SPLIT
) -> tuple[Fact, ...]:
    """The facts that an argument `facts` stands for; contradictions among them are kept.

    Args:
        facts: A built-in set, a file, a folder or a Hub data set, as `read_facts` takes it; a set that was read; or
            facts.
        num_facts: How many facts of a named source to take, chosen by `seed`; None for all.
        seed: Of that choice.
        dataset_split: Which split of a `datasets` folder or Hub data set to read.

    Returns:
        At least one fact, each with its own id.

    Raises:
        InputError: If the source cannot be read, there is no fact, something else than facts was given, or two facts
            share an id.
    """
    if isinstance(facts, str | os.PathLike):
        named = read_facts(
            os.fspath(facts), num_facts=num_facts, seed=seed, dataset_split=dataset_split, contradictions="keep"
        )
        for warning in named.warnings:
            logger.warning(warning)
        return named.facts
    if num_facts is not None or dataset_split != DEFAULT_DATASET_SPLIT:
        argument = "dataset_split" if num_facts is None else "num_facts"
        raise InputError(f"`{argument}` chooses from a set that is named; take a part of the facts instead.")
    given: object = facts.facts if isinstance(facts, FactSet) else facts
    if not isinstance(given, Sequence):
        hint = "; put it in a list" if isinstance(given, Fact) else ""
        raise InputError(f"`facts`: {_EXPECTED}, got {type(given).__name__}{hint}")
    chosen: list[Fact] = []
    for row, fact in enumerate(given):
        if not isinstance(fact, Fact):
            raise InputError(f"`facts`: {_EXPECTED}, got a list whose item {row} is of type {type(fact).__name__}")
        chosen.append(fact)
    if not chosen:
        raise InputError("`facts` is empty; expected at least one fact")
    fact_id, count = Counter(fact.id for fact in chosen).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"`facts`: expected a different id for each fact, got {count} facts with the id {fact_id!r}. Give each its "
            "own, or leave one of them out."
        )
    return tuple(chosen)


_EXPECTED = "expected the name of a set, a file or a folder, what `read_facts` returned, or a list of `Fact`"
