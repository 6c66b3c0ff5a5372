"""The facts that a function is given: named, read already, or made by hand."""

import logging

from lit_semantic_peft.facts.in_memory import GivenFacts
from lit_semantic_peft.facts.libraries import DEFAULT_DATASET_SPLIT
from lit_semantic_peft.facts.readers import read_facts
from lit_semantic_peft.facts.schema import Fact

logger = logging.getLogger(__name__)


def given_facts(
    facts: GivenFacts, *, num_facts: int | None = None, seed: int = 0, dataset_split: str = DEFAULT_DATASET_SPLIT
) -> tuple[Fact, ...]:
    """The facts that an argument `facts` stands for; contradictions among them are kept.

    Args:
        facts: As `read_facts` takes them.
        num_facts: How many facts to take, chosen by `seed`; None for all.
        seed: Of that choice.
        dataset_split: Which split of a `datasets` folder, a Hub data set or a `DatasetDict` to read.

    Returns:
        At least one fact, each with its own id.

    Raises:
        InputError: For what `read_facts` refuses.
    """
    read = read_facts(facts, num_facts=num_facts, seed=seed, dataset_split=dataset_split, contradictions="keep")
    for warning in read.warnings:
        logger.warning(warning)
    return read.facts
