"""Answers of `predict`, on the screen and in a file."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from typing_extensions import override

from lit_semantic_peft.callbacks.terminal import show
from lit_semantic_peft.data import from_all_ranks
from lit_semantic_peft.evaluation import Evaluator, Question
from lit_semantic_peft.files import WRITTEN_BY, mark, write_text
from lit_semantic_peft.metrics import is_exact_match
from lit_semantic_peft.models import base_changing_setting
from lit_semantic_peft.models.compiled import eagerly
from lit_semantic_peft.reports.run_folder import RunFolder, RunPaths
from lit_semantic_peft.training import SemanticPeftModule

_SHOWN = 20


class _Answered(NamedTuple):
    question: Question
    answer: str
    base_answer: str | None


class AnswerWriter(Callback):
    """Writes `predictions.jsonl` into the run folder and shows the first answers.

    Each line has `prompt`, `answer` and `base_answer`, the base model's; for facts also `target`, `fact_index`, `right`
    and `base_right`, whether the whole answer is the target or an alias; and the mark of the file's kind. The base
    model's are null where the adapter has changed the base model's own weights.
    """

    def __init__(self) -> None:
        self._answers: list[_Answered] = []

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        base: Sequence[str | None] = base_answers(trainer, pl_module, batch) or [None] * len(batch)
        self._answers += map(_Answered, batch, outputs, base)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the answers of all ranks, each question once, in order; writes and shows them."""
        gathered = from_all_ranks(self._answers)
        self._answers = []
        if not trainer.is_global_zero:
            return
        by_number = {one.question.number: one for rows in gathered for one in rows}
        answers = [by_number[number] for number in sorted(by_number)]
        path = RunFolder(trainer.default_root_dir).paths.predictions
        lines = (json.dumps(_row(one), ensure_ascii=False) + "\n" for one in answers)
        write_text(path, "".join(lines), RunPaths.predictions.kind)
        said = f"Written: {path.absolute()} (answers: {len(answers)})"
        show(trainer, pl_module, _table(answers[:_SHOWN]), *_how_many_right(answers), said)


def base_answers(trainer: Trainer, module: SemanticPeftModule, questions: Sequence[Question]) -> list[str] | None:
    """What the base model answers freely. A collective where the base model is sharded.

    Args:
        trainer: The trainer, while it predicts.
        module: The module.
        questions: What to ask.

    Returns:
        An answer per question; None where the adapter has changed the base model's own weights.
    """
    model = module.model
    if base_changing_setting(model.active_peft_config) is not None:
        return None
    evaluator = Evaluator(module.data.encoder, module.data.distances)
    gathered = getattr(trainer.strategy, "gathered", nullcontext)  # `ShardedBaseStrategy`
    with gathered(), trainer.precision_plugin.forward_context(), eagerly(), model.disable_adapter():
        return evaluator.free_answers(model, questions)


def _table(answers: Sequence[_Answered]) -> Table:
    has_target = any(one.question.accepted for one in answers)
    has_base = any(one.base_answer is not None for one in answers)
    table = Table("prompt", "answer", *(["base model"] if has_base else []), *(["target"] if has_target else []))
    for one in answers:
        cells = [one.question.prompt, _marked(one.question, one.answer)]
        cells += [_marked(one.question, one.base_answer)] if has_base else []
        table.add_row(*cells, *([one.question.target] if has_target else []))
    return table


def _marked(question: Question, answer: str | None) -> str:
    """An answer with whether it is right, where that is known."""
    if answer is None or not question.accepted:
        return answer or ""
    return f"{'✓' if is_exact_match(answer, question.accepted) else '✗'} {answer}"


def _how_many_right(answers: Sequence[_Answered]) -> list[str]:
    judged = [one for one in answers if one.question.accepted]
    if not judged:
        return []
    right = sum(is_exact_match(one.answer, one.question.accepted) for one in judged)
    base = [one for one in judged if one.base_answer is not None]
    right_base = sum(is_exact_match(one.base_answer or "", one.question.accepted) for one in base)
    return [f"Right: {right} of {len(judged)}" + (f"; base model: {right_base} of {len(base)}" if base else "")]


def _row(answered: _Answered) -> dict[str, Any]:
    question, answer, base = answered
    row: dict[str, Any] = {"prompt": question.prompt, "answer": answer, "base_answer": base}
    if question.kind != "prompt":
        row |= {"target": question.target, "fact_index": question.fact_index}
        row["right"] = is_exact_match(answer, question.accepted)
        row["base_right"] = None if base is None else is_exact_match(base, question.accepted)
    return row | {WRITTEN_BY: mark(RunPaths.predictions.kind)}
