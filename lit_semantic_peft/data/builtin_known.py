"""Built-in facts about subjects that a run's own facts do not have: some to ask, the others to retain."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lit_semantic_peft.facts import Fact, read_facts

_NUM_ASKED = 128  # a base model of 135M parameters knows about a tenth of them


@dataclass(frozen=True)
class BuiltinFacts:
    """Facts of the set `world`. No subject or prompt is in both parts, nor among the run's facts and their probes.

    Attributes:
        asked: What the evaluation may ask.
        retainable: What a training may retain.
    """

    asked: tuple[Fact, ...]
    retainable: tuple[Fact, ...]


def builtin_facts(own: Iterable[Fact], seed: int) -> BuiltinFacts:
    """Divides the built-in facts.

    Args:
        own: The run's facts.
        seed: Of the division.
    """
    own = list(own)
    subjects = {fact.subject for fact in own}
    prompts = {prompt for fact in own for prompt in prompts_of(fact)}
    without_subject = "\n".join(fact.prompt for fact in own if not fact.subject)
    world = read_facts("world", seed=seed).facts
    others = [
        fact
        for fact in world
        if not (fact.subject in subjects or fact.prompt in prompts or fact.subject in without_subject)
    ]
    order = [others[place] for place in np.random.default_rng(seed).permutation(len(others))]
    asked, rest = order[:_NUM_ASKED], order[_NUM_ASKED:]
    asked_subjects = {fact.subject for fact in asked}
    return BuiltinFacts(tuple(asked), tuple(fact for fact in rest if fact.subject not in asked_subjects))


def prompts_of(fact: Fact) -> set[str]:
    """Every prompt that is taught or asked of a fact and its probes.

    Args:
        fact: The fact.
    """
    probes = (*fact.neighborhood, *fact.portability, *fact.yes_no)
    return {fact.prompt, *fact.paraphrases, *(form.prompt for form in fact.forms), *(one.prompt for one in probes)}
