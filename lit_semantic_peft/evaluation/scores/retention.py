"""What happened to everything else: text that has nothing to do with the facts, and facts known before.

These are of no single fact, so they have no column in the fact table: their numbers are one per text and one per fact
that the base model knows and that had no part in training.
"""

import math
from collections.abc import Sequence

from lit_semantic_peft.evaluation.scores.definition import Reply, ScoreDefinition


def _nll_delta(texts: Sequence[Reply]) -> list[float]:
    return [reply.comparison.after.nll - reply.comparison.before.nll for reply in texts]


def _still_known(untouched_facts: Sequence[Reply], other_facts: Sequence[Reply]) -> list[float]:
    rows = [reply.comparison for reply in (*untouched_facts, *other_facts)]
    return [row.is_still_known for row in rows if row.was_known]


RETENTION = (
    ScoreDefinition(
        name="retention_nll_delta",
        label="loss of unrelated text, after − before",
        description="Loss on unrelated text, after minus before, mean over the texts, nats per token; 0 is unchanged, "
        "positive is harm.",
        caution="Sixteen short texts in English: it sees broad damage, not the loss of single facts. Every text counts "
        "the same, so it is not `retention_nll_after` − `retention_nll_before`, which are over all tokens.",
        kinds=("text",),
        values=_nll_delta,
        has_sides=False,
        unit="nats per token",
        lowest=-math.inf,
        highest=math.inf,
        higher_is_better=False,
    ),
    ScoreDefinition(
        name="retention_known",
        label="other known facts still known",
        description="Facts that the base model knows and that had no part in training (neither taught nor retained by "
        "`model.retain`), and that the trained model still knows.",
        caution="Facts near those that were taught suffer first: with few dropped facts, built-in ones about other "
        "subjects are asked.",
        kinds=("fact", "known"),
        values=_still_known,
        has_sides=False,
        in_terminal=True,
    ),
)
