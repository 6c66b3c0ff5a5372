"""Whether the model answers a fact's own prompt with its target."""

from collections.abc import Sequence

from lit_semantic_peft.evaluation.scores.definition import (
    Reply,
    ScoreDefinition,
    preferred,
    right,
    right_teacher_forced,
)


def _probability(replies: Sequence[Reply]) -> list[float]:
    import torch  # where answers are, torch is; the definitions are read without it

    from lit_semantic_peft.metrics import target_probability

    encoded = [reply.comparison.question.encoded for reply in replies]
    nll = torch.tensor([reply.answer.nll for reply in replies], dtype=torch.float64)
    num_target_tokens = torch.tensor([one.num_target_tokens for one in encoded if one is not None])
    return target_probability(nll, num_target_tokens).tolist()


EFFICACY = (
    ScoreDefinition(
        name="efficacy",
        label="facts answered right",
        description="Facts whose free answer to their own prompt is right.",
        caution="It is the training sentence: reciting is not knowing. Before training it is near 0 because a base "
        "model does not stop after an answer it knows.",
        kinds=("fact",),
        values=right,
        is_flag=True,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="efficacy_teacher_forced",
        label="facts recalled, teacher-forced",
        description="Facts whose target tokens all win under the true prefix.",
        caution="Easier than `efficacy`: a model that would have begun differently is shown the right beginning.",
        kinds=("fact",),
        values=right_teacher_forced,
        is_flag=True,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="efficacy_probability",
        label="probability of the target",
        description="Probability of the whole target.",
        caution="Falls with the target's length, so compare it before and after, not between facts.",
        kinds=("fact",),
        values=_probability,
        unit="probability",
    ),
    ScoreDefinition(
        name="efficacy_over_true",
        label="target preferred to the old answer",
        description="Facts whose target is likelier per token than `target_true`.",
        caution="Can be 1 while the model answers with neither. Only facts that name a `target_true`.",
        kinds=("fact", "rival"),
        values=preferred,
    ),
)
