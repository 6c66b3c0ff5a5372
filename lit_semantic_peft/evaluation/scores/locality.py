"""Whether the neighbours of a fact stayed as they were, base model against trained model."""

import math
from collections.abc import Sequence

from lit_semantic_peft.evaluation.scores.definition import Reply, ScoreDefinition


def _unchanged(neighbors: Sequence[Reply]) -> list[float]:
    return [reply.comparison.is_unchanged for reply in neighbors]


def _same_tokens_win(neighbors: Sequence[Reply]) -> list[float]:
    return [reply.comparison.before.winners == reply.comparison.after.winners for reply in neighbors]


def _divergence(neighbors: Sequence[Reply]) -> list[float]:
    return [reply.comparison.after.kl for reply in neighbors if reply.comparison.after.kl is not None]


LOCALITY = (
    ScoreDefinition(
        name="locality",
        label="neighbours' answers unchanged",
        description="Neighbours whose free answer is still the base model's.",
        caution="The shorter answer counts as the same if the longer begins with it; a wrong answer that stayed wrong "
        "counts as kept. 1 with an untrained adapter: read it beside `efficacy`.",
        kinds=("neighborhood",),
        values=_unchanged,
        has_sides=False,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="locality_teacher_forced",
        label="neighbours unchanged, teacher-forced",
        description="Neighbours where the base model's tokens still win at every answer position.",
        caution="The positions are those of the neighbour's true answer, which possibly neither model gives.",
        kinds=("neighborhood",),
        values=_same_tokens_win,
        has_sides=False,
    ),
    ScoreDefinition(
        name="locality_kl",
        label="divergence of the neighbours, nats",
        description="Divergence of the neighbours from the base model, mean over the answer positions, nats; 0 is "
        "unchanged.",
        caution="A lower bound: over the 64 tokens that the base model finds likeliest, and the rest as one.",
        kinds=("neighborhood",),
        values=_divergence,
        has_sides=False,
        unit="nats",
        highest=math.inf,
        higher_is_better=False,
    ),
)
