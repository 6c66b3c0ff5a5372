"""Whether the model answers yes where yes is right, and no where no is.

The two are apart because their mean would hide a model that always says one of them.
"""

from collections.abc import Sequence

from lit_semantic_peft.evaluation.scores.definition import Reply, ScoreDefinition


def is_yes(answer: str) -> bool:
    """Whether the right answer of a yes/no question is yes."""
    return answer.strip().lower().startswith("yes")


def _right_where_yes(replies: Sequence[Reply]) -> list[float]:
    return [reply.begins_right for reply in replies if is_yes(reply.comparison.question.target)]


def _right_where_no(replies: Sequence[Reply]) -> list[float]:
    return [reply.begins_right for reply in replies if not is_yes(reply.comparison.question.target)]


YES_NO = (
    ScoreDefinition(
        name="yes_no_yes",
        label="yes, where yes is right",
        description="Yes/no questions about the fact whose right answer is yes and whose answer begins with it.",
        caution="A model that always says yes has 1: read it beside `yes_no_no`.",
        kinds=("yes_no",),
        values=_right_where_yes,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="yes_no_no",
        label="no, where no is right",
        description="Yes/no questions about the fact whose right answer is no and whose answer begins with it.",
        caution="A model that always says no has 1: read it beside `yes_no_yes`.",
        kinds=("yes_no",),
        values=_right_where_no,
        in_terminal=True,
    ),
)
