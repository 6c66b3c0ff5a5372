"""What a score is: a name, what is asked for it, how a fact's value comes from the answers, and how to read it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # reports read the definitions and need no torch for it
    from lit_semantic_peft.evaluation.answers import Answer
    from lit_semantic_peft.evaluation.evaluator import Comparison
    from lit_semantic_peft.evaluation.questions import QuestionKind

Side = Literal["before", "after"]
Unit = Literal["share", "probability", "nats", "nats per token"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A question as one side answered it.

    Attributes:
        comparison: The question with the answers of both sides.
        side: `before` for the base model, `after` for the trained model.
        learned: Indices of the facts whose own prompt this side answers right.
        learned_teacher_forced: The same under the true prefix.
    """

    comparison: "Comparison"
    side: Side
    learned: frozenset[int]
    learned_teacher_forced: frozenset[int]

    @property
    def answer(self) -> "Answer":
        """This side's answer."""
        return self.comparison.before if self.side == "before" else self.comparison.after

    @property
    def begins_right(self) -> bool:
        """Whether this side's answer begins with an accepted one; a model that goes on is not wrong for it."""
        return self.comparison.was_known if self.side == "before" else self.comparison.is_still_known

    @property
    def needs_only_learned(self) -> bool:
        """Whether all facts that the answer follows from were learned; one that is not among the facts was not."""
        return self._needed <= self.learned

    @property
    def needs_only_learned_teacher_forced(self) -> bool:
        """The same under the true prefix."""
        return self._needed <= self.learned_teacher_forced

    @property
    def _needed(self) -> set[int]:
        return {self.comparison.question.fact_index, *self.comparison.question.needs}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDefinition:
    """A score: the mean over facts of one number per fact, which is itself a mean over what was asked of that fact.

    It is all that the table, the logger, the summary, the report, the terminal, `compare` and the docs know of it.

    Attributes:
        name: Its only name: column of the fact table, key of `summary.json`, behind `test/` in the logger. With
            `has_sides` there are two columns, `<name>_before` and `<name>_after`.
        label: A few words for people, as a table's first column shows them.
        description: One sentence, with unit and direction.
        caution: When it misleads.
        kinds: Kinds of question that it reads.
        values: From a fact's replies, a sequence for each of `kinds`, the numbers whose mean is the fact's value. No
            number: not measured.
        has_sides: Whether base model and trained model have a value each; else one value compares the two.
        is_flag: Whether a fact's value is a plain yes or no, since one question is asked of each fact.
        unit: Unit of the value; `share` and `probability` are in [0, 1].
        lowest: Smallest possible value.
        highest: Largest possible value.
        higher_is_better: Whether more is better.
        in_terminal: Whether the short table at the end of a run shows it.
    """

    name: str
    label: str
    description: str
    caution: str
    kinds: "tuple[QuestionKind, ...]"
    values: Callable[..., Sequence[float]]
    has_sides: bool = True
    is_flag: bool = False
    unit: Unit = "share"
    lowest: float = 0.0
    highest: float = 1.0
    higher_is_better: bool = True
    in_terminal: bool = False

    @property
    def after(self) -> str:
        """Column of the trained model's side, or of the comparison."""
        return f"{self.name}_after" if self.has_sides else self.name

    @property
    def before(self) -> str | None:
        """Column of the base model's side; None for a comparison."""
        return f"{self.name}_before" if self.has_sides else None

    @property
    def is_share(self) -> bool:
        """Whether people read it as a percentage."""
        return self.unit in ("share", "probability")

    @property
    def range_text(self) -> str:
        """The possible values as text: `0 to 1`, `at least 0`, `any`."""
        if math.isinf(self.lowest):
            return "any"
        return f"at least {self.lowest:g}" if math.isinf(self.highest) else f"{self.lowest:g} to {self.highest:g}"


def right(replies: Sequence[Reply]) -> list[float]:
    """Whether each free answer is right."""
    return [reply.answer.is_correct for reply in replies]


def right_teacher_forced(replies: Sequence[Reply]) -> list[float]:
    """Whether each target's tokens all win under the true prefix."""
    return [reply.answer.is_recalled for reply in replies]


def preferred(replies: Sequence[Reply], rivals: Sequence[Reply]) -> list[float]:
    """Whether each target is likelier per token than every rival; no number where there is no rival."""
    if not rivals:
        return []
    best = min(rival.answer.nll for rival in rivals)
    return [reply.answer.nll < best for reply in replies]
