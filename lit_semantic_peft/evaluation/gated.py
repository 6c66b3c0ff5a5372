"""What the answers would be with a gate: the trained model's where it opens, and the base model's everywhere else."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lit_semantic_peft.adapters import SubjectTable
from lit_semantic_peft.evaluation.evaluator import Comparison
from lit_semantic_peft.evaluation.questions import Question
from lit_semantic_peft.evaluation.result import Evaluation


@dataclass(frozen=True)
class GatedEvaluation:
    """An evaluation through a gate.

    Both models were asked in the same batches, and a closed gate gives the base model's output to the last bit. So the
    answers of the gated model are those that are there already.

    Attributes:
        evaluation: Of the gated model.
        num_opened: Questions that opened the gate, by kind; kinds without one have 0.
        num_asked: All questions, by kind.
    """

    evaluation: Evaluation
    num_opened: Mapping[str, int]
    num_asked: Mapping[str, int]


def through_gate(evaluation: Evaluation, table: SubjectTable) -> GatedEvaluation:
    """The evaluation of the model that the gate makes of base model and trained model.

    Args:
        evaluation: Of both models, without the gate.
        table: The names that open it.
    """
    is_open = [opens(table, row.question) for row in evaluation.comparisons]
    rows = [row if opened else _closed(row) for row, opened in zip(evaluation.comparisons, is_open, strict=True)]
    kinds: list[str] = [row.question.kind for row in rows]
    opened = Counter(kind for kind, opened in zip(kinds, is_open, strict=True) if opened)
    asked = Counter(kinds)
    return GatedEvaluation(
        Evaluation(rows, evaluation.is_untouched, evaluation.distance_name),
        {kind: opened[kind] for kind in asked},
        dict(asked),
    )


def opens(table: SubjectTable, question: Question) -> bool:
    """Whether a question opens the gate by its prompt; a text whose likelihood is measured, by itself.

    Args:
        table: The names that open it.
        question: The question.
    """
    return table.opens(question.prompt or question.target)


def _closed(row: Comparison) -> Comparison:
    """The comparison of the base model with itself."""
    is_near = row.question.kind == "neighborhood"
    after = replace(row.before, likeliest_ids=None, likeliest_log_prob=None, kl=0.0 if is_near else None)
    return replace(row, after=after)
