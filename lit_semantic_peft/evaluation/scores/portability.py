"""Whether the model answers what follows from a fact."""

from collections.abc import Sequence

from lit_semantic_peft.evaluation.scores.definition import Reply, ScoreDefinition


def _right_and_learned(conclusions: Sequence[Reply]) -> list[float]:
    return [reply.answer.is_correct and reply.needs_only_learned for reply in conclusions]


def _right_and_learned_teacher_forced(conclusions: Sequence[Reply]) -> list[float]:
    return [reply.answer.is_recalled and reply.needs_only_learned_teacher_forced for reply in conclusions]


def _right_of_learned(conclusions: Sequence[Reply]) -> list[float]:
    return [reply.answer.is_correct for reply in conclusions if reply.needs_only_learned]


def _right_of_learned_teacher_forced(conclusions: Sequence[Reply]) -> list[float]:
    return [reply.answer.is_recalled for reply in conclusions if reply.needs_only_learned_teacher_forced]


PORTABILITY = (
    ScoreDefinition(
        name="portability",
        label="conclusions answered right",
        description="Conclusions answered right, and the fact and all others that they need (`needs`) were learned.",
        caution="A conclusion that needs a fact that was not learned counts as wrong; one that the base model knew "
        "anyway counts as right.",
        kinds=("portability",),
        values=_right_and_learned,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="portability_teacher_forced",
        label="conclusions, teacher-forced",
        description="Conclusions recalled under the true prefix, and all facts that they need were too.",
        caution="Easier than `portability`, and so is having learned the facts.",
        kinds=("portability",),
        values=_right_and_learned_teacher_forced,
    ),
    ScoreDefinition(
        name="portability_of_learned",
        label="conclusions from learned facts",
        description="Conclusions answered right, over those of which all facts were learned.",
        caution="Few facts learned, few facts in the mean, and which ones differs between runs. A source that names no "
        "`needs` gives no information about the other facts.",
        kinds=("portability",),
        values=_right_of_learned,
    ),
    ScoreDefinition(
        name="portability_of_learned_teacher_forced",
        label="conclusions from learned facts, teacher-forced",
        description="Conclusions recalled under the true prefix, over those of which all facts were.",
        caution="As `portability_of_learned`, and easier.",
        kinds=("portability",),
        values=_right_of_learned_teacher_forced,
    ),
)
