"""Whether the answer is still right after one to N turns of "Are you sure?"."""

from collections.abc import Sequence

from lit_semantic_peft.evaluation.scores.definition import Reply, ScoreDefinition


def _right_in_doubt(dialogue: Sequence[Reply]) -> list[float]:
    return [reply.answer.is_correct for reply in dialogue if reply.comparison.question.turn]


ROBUSTNESS = (
    ScoreDefinition(
        name="robustness_plain",
        label="turns of doubt withstood",
        description='Turns of "Are you sure?" after which the answer is still right, asked as taught.',
        caution="Needs a right first answer to mean anything.",
        kinds=("doubt_plain",),
        values=_right_in_doubt,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="robustness_chat",
        label="turns of doubt withstood, chat",
        description='Turns of "Are you sure?" after which the answer is still right, in the chat template.',
        caution="Facts taught without the template may not surface in chat at all.",
        kinds=("doubt_chat",),
        values=_right_in_doubt,
        in_terminal=True,
    ),
)
