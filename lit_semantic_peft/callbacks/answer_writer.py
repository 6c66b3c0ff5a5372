"""Answers of `predict`, on the screen and in a file."""

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from typing_extensions import override

from lit_semantic_peft.callbacks.terminal import show
from lit_semantic_peft.data import from_all_ranks
from lit_semantic_peft.evaluation import Question
from lit_semantic_peft.files import WRITTEN_BY, mark, write_text
from lit_semantic_peft.reports.run_folder import RunFolder, RunPaths

_SHOWN = 20


class AnswerWriter(Callback):
    """Writes `predictions.jsonl` into the run folder and shows the first answers.

    Each line has `prompt`, `answer`, for facts `target` and `fact_index`, and the mark of the file's kind.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[Question, str]] = []

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
        self._answers += zip(batch, outputs, strict=True)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the answers of all ranks, each question once, in order; writes and shows them."""
        gathered = from_all_ranks(self._answers)
        self._answers = []
        if not trainer.is_global_zero:
            return
        by_number = {question.number: (question, answer) for rows in gathered for question, answer in rows}
        answers = [by_number[number] for number in sorted(by_number)]
        path = RunFolder(trainer.default_root_dir).paths.predictions
        lines = (json.dumps(_row(*one), ensure_ascii=False) + "\n" for one in answers)
        write_text(path, "".join(lines), RunPaths.predictions.kind)
        table = Table("prompt", "answer", "target")
        for question, answer in answers[:_SHOWN]:
            table.add_row(question.prompt, answer, question.target)
        show(trainer, pl_module, table, f"Written: {path.absolute()} (answers: {len(answers)})")


def _row(question: Question, answer: str) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": question.prompt, "answer": answer}
    if question.kind != "prompt":
        row |= {"target": question.target, "fact_index": question.fact_index}
    return row | {WRITTEN_BY: mark(RunPaths.predictions.kind)}
