"""How a LightningModule measures its adapter: after each epoch, and in `validate`, `test` and `predict`."""

import torch
from lightning.pytorch import LightningModule
from peft import PeftModel
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.data import KnowledgeDataModule, agreed, from_all_ranks
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Question, load_answers, store_answers
from lit_semantic_peft.evaluation.evaluator import EVALUATION_VERSION, Comparison, Evaluator
from lit_semantic_peft.evaluation.measured_scores import Scores, measure_scores
from lit_semantic_peft.metrics import LearningDynamics, PerFactMean, PushedAway, share
from lit_semantic_peft.models import base_changing_setting
from lit_semantic_peft.models.compiled import eagerly
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.statistics import bootstrap_interval
from lit_semantic_peft.tokens import Batch


class EvaluatingModule(LightningModule):
    """A module with a PEFT model whose facts are measured.

    Logged metrics:

    - `val/recall`: share of kept facts that are recalled teacher-forced, [0, 1], each validation.
    - `val/nll`: mean negative log-likelihood of the kept facts, nats per token, each validation.
    - `val/recall_dropped`, `val/nll_dropped`: the same for the facts that are not kept, where there are any; deferred
      ones stay among them when they are trained.
    - `test/recall`, `test/recall_generated`, each also with `_dropped`: share of facts that are recalled
      teacher-forced, and whose free answer is exactly right, [0, 1].
    - `test/pushed_away`: share of kept facts that are farther after training than before, [0, 1].
    - `test/<score>`, `test/<score>_low`, `test/<score>_high`: each score of `evaluation.SCORES` that was measured,
      trained model, mean over the kept facts with its 95 % bootstrap interval.
    """

    def __init__(self) -> None:
        super().__init__()
        self.comparisons: list[Comparison] = []
        self.scores: Scores | None = None
        self.is_pushed_away = torch.zeros(0, dtype=torch.bool)
        self._model: PeftModel | None = None

    @property
    def model(self) -> PeftModel:
        """The PEFT model.

        Raises:
            RuntimeError: Before `configure_model`.
        """
        if self._model is None:
            raise RuntimeError("SemanticPeftModule.configure_model() has not run yet")
        return self._model

    @property
    def data(self) -> KnowledgeDataModule:
        """The data module of the running trainer.

        Raises:
            InputError: If the trainer runs without a `KnowledgeDataModule`.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, KnowledgeDataModule):
            raise InputError("SemanticPeftModule needs `datamodule=KnowledgeDataModule(...)` in the trainer's call")
        return data

    @override
    def setup(self, stage: str) -> None:
        num_facts = len(self.data.prepared.facts)
        if stage != "test":
            self.val_nll = PerFactMean(num_facts)
            self.val_recall = PerFactMean(num_facts)
        if stage == "fit":
            # `on_fit_end` reads it when the strategy has moved it to the CPU, where nccl gathers nothing.
            self.dynamics = LearningDynamics(num_facts, sync_on_compute=False)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            return
        with eagerly():
            scores = score_targets(self.model, batch)
        self.val_nll.update(scores.nll, batch.fact_index)
        self.val_recall.update(scores.is_recalled, batch.fact_index)
        if self.trainer.state.fn == "fit":
            self.dynamics.update(scores.is_recalled, batch.fact_index)

    @override
    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        nll, recall = self.val_nll.compute(), self.val_recall.compute()
        if self.trainer.state.fn == "fit":
            self.dynamics.end_epoch(self.current_epoch)
        is_kept = torch.as_tensor(self.data.prepared.is_kept, device=nll.device)
        for suffix, rows in (("", is_kept), ("_dropped", ~is_kept)):
            rows = rows & ~nll.isnan()
            if rows.any():
                self.log(f"val/recall{suffix}", recall[rows].mean(), prog_bar=not suffix, batch_size=1)
                self.log(f"val/nll{suffix}", nll[rows].mean(), prog_bar=not suffix, batch_size=1)
                if self.trainer.state.fn == "validate":  # not after every epoch of training
                    self._log_interval(f"val/recall{suffix}", recall[rows])
                    self._log_interval(f"val/nll{suffix}", nll[rows])
        self.val_nll.reset()
        self.val_recall.reset()

    def _log_interval(self, name: str, values: Tensor) -> None:
        """Logs the bootstrap interval over facts as `<name>_low` and `<name>_high`."""
        interval = bootstrap_interval(values.double().cpu().numpy())
        assert interval is not None
        for end in ("low", "high"):
            self.log(f"{name}_{end}", getattr(interval, end), batch_size=1)

    @override
    def on_test_start(self) -> None:
        # Answers of the base model that are known already are not asked again.
        if setting := base_changing_setting(self.model.active_peft_config):
            raise InputError(
                f"The adapter was made with `{setting}`, which changes the base model itself, so that `test` has "
                "nothing to compare it with. `predict` and `export` take it."
            )
        data = self.data
        self.comparisons = []
        self._evaluator = Evaluator(
            data.encoder,
            data.distances,
            data.evaluation.doubt_turns,
            [fact.joiner for fact in data.prepared.facts],
            load_answers(data.answer_cache, data.answer_manifest(EVALUATION_VERSION), data.questions),
        )

    @override
    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        with eagerly():
            self.comparisons += self._evaluator.compare(self.model, questions)

    @override
    def on_test_epoch_end(self) -> None:
        by_number = {row.question.number: row for rows in from_all_ranks(self.comparisons) for row in rows}
        self.comparisons = [by_number[number] for number in sorted(by_number)]
        data = self.data
        agreed(self._keep_base_answers)
        is_kept = torch.as_tensor(data.prepared.is_kept)
        self.scores = measure_scores(self.comparisons, torch.as_tensor(data.prepared.is_untouched))
        for name, value in self.scores.scalars(is_kept).items():
            self.log(f"test/{name}", value, batch_size=1)
        facts = [row for row in self.comparisons if row.question.kind == "fact"]
        # The comparisons are those of all ranks already, so there is nothing left to reduce.
        pushed_away = PushedAway(len(is_kept), sync_on_compute=False)
        name = data.distances[0].name
        pushed_away.update(
            torch.tensor([row.before.distances[name] for row in facts]),
            torch.tensor([row.after.distances[name] for row in facts]),
            torch.tensor([row.question.fact_index for row in facts], dtype=torch.long),
        )
        result = pushed_away.compute()
        self.is_pushed_away = result["is_pushed_away"]
        is_measured = torch.isfinite(result["distance_delta"])
        self.log("test/pushed_away", share(self.is_pushed_away, is_kept & is_measured), batch_size=1)

    def _keep_base_answers(self) -> None:
        if self._evaluator.base_answers is not None or not self.trainer.is_global_zero:
            return
        answers = {row.question.number: row.before for row in self.comparisons}
        if all(question.number in answers for question in self.data.questions):  # `limit_test_batches` asks some only
            store_answers(self.data.answer_cache, self.data.answer_manifest(EVALUATION_VERSION), answers)

    @override
    def predict_step(self, questions: list[Question], batch_idx: int) -> list[str]:
        with eagerly():
            return Evaluator(self.data.encoder, self.data.distances).free_answers(self.model, questions)
