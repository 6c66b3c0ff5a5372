"""How a LightningModule measures its adapter: after each epoch, and in `validate`, `test` and `predict`."""

import logging
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from peft import PeftConfig, PeftModel
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.adapters import SubjectGate, SubjectTable
from lit_semantic_peft.compatibility import refuse_incompatible
from lit_semantic_peft.data import KnowledgeDataModule, agreed, from_all_ranks
from lit_semantic_peft.data.self_checks import SelfChecks, require_awake
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import (
    EVALUATION_VERSION,
    Comparison,
    Evaluation,
    Evaluator,
    GatedEvaluation,
    Question,
    load_answers,
    opens,
    store_answers,
    through_gate,
)
from lit_semantic_peft.metrics import LearningDynamics, PerFactMean
from lit_semantic_peft.models import BaseModel, base_changing_setting, traits_of
from lit_semantic_peft.models.compiled import eagerly
from lit_semantic_peft.models.fast_ways import is_checked
from lit_semantic_peft.models.gated import read_gate
from lit_semantic_peft.models.tree_attention import measures_trees
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.situation import Situation
from lit_semantic_peft.statistics import bootstrap_interval
from lit_semantic_peft.tokens import Batch, cheaper_tree
from lit_semantic_peft.training.names import learn_names

logger = logging.getLogger(__name__)


class EvaluatingModule(LightningModule):
    """A module with a PEFT model whose facts are measured.

    Logged metrics:

    - `val/efficacy_teacher_forced`: share of the kept facts whose target tokens all win under the true prefix, [0, 1],
      each validation.
    - `val/stopping_efficacy_teacher_forced`: the same in the stopping forms, mean over the kept facts of the share of
      a fact's stopping forms; where a fact has none, its own prompt counts. Only where a fact has one.
    - `val/nll`: mean negative log-likelihood of the kept facts, nats per token, each validation.
    - `val/efficacy_teacher_forced_dropped`, `val/nll_dropped`: the same for the facts that a filter dropped, where
      there are any; deferred ones stay among them when they are trained.
    - `test/<score>`, `test/<score>_low`, `test/<score>_high`: each score of `evaluation.SCORES` that was measured,
      trained model, mean over the kept facts with its 95 % bootstrap interval; `test/<score>_dropped`: mean over the
      facts that a filter dropped.
    - `test/<score>` of `evaluation.RETENTION`, with `_low` and `_high`; `test/retention_nll_before` and
      `test/retention_nll_after`: mean negative log-likelihood of unrelated text, nats per token.
    - `test/gated/<any of these>`: the same through the gate, where there is one (`model.gate`).
    - `test/pushed_away`: share of kept facts that are farther after training than before, [0, 1].
    """

    base_model: BaseModel
    gate: SubjectGate | None
    prefix_tree: bool | None

    def __init__(self) -> None:
        super().__init__()
        self.evaluation: Evaluation | None = None
        self.gated: GatedEvaluation | None = None
        self.subject_table: SubjectTable | None = None
        self._comparisons: list[Comparison] = []
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

    def learn_names(self, peft_config: PeftConfig) -> None:
        """Gives the names in the facts that are about to be trained to the gate and to an adapter that routes by them.

        Args:
            peft_config: The adapter's.

        Raises:
            InputError: If a fact's own prompt would not be recognised.
        """
        prepared = self.data.prepared
        taught = [fact for fact, is_taught in zip(prepared.facts, prepared.is_trained, strict=True) if is_taught]
        if self.gate is not None:
            self.subject_table = self.gate.table(taught)
        if traits_of(peft_config).routes:
            learn_names(peft_config, taught, self.data)

    def read_gate(self, folder: str) -> None:
        """Takes the gate of an exported adapter; one without a gate has none, whatever `gate` says.

        Args:
            folder: The adapter's folder.

        Raises:
            InputError: If the table is damaged.
        """
        self.subject_table = read_gate(folder)
        if self.gate is not None and self.subject_table is None:
            logger.warning("`adapter` %r was exported without a gate, so `model.gate` has no effect.", folder)

    @override
    def setup(self, stage: str) -> None:
        forms = self.data.prepared.forms
        num_facts = len(forms.of_facts)
        if stage != "test":
            self.val_text_efficacy = PerFactMean(len(forms.texts))
            self.val_nll = PerFactMean(num_facts)
            self.val_efficacy = PerFactMean(num_facts)
        if stage == "fit":
            # `on_fit_end` reads it when the strategy has moved it to the CPU, where nccl gathers nothing.
            self.dynamics = LearningDynamics(num_facts, sync_on_compute=False)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            return
        tree = cheaper_tree(batch) if measures_trees(self.model, self.prefix_tree) else None
        with eagerly():
            scores = score_targets(self.model, batch, tree=tree)
        self.val_text_efficacy.update(scores.is_recalled, batch.text_index)
        own = batch.text_index == batch.fact_index
        facts, nll, is_recalled = batch.fact_index[own], scores.nll[own], scores.is_recalled[own]
        self.val_nll.update(nll, facts)
        self.val_efficacy.update(is_recalled, facts)
        if self.trainer.state.fn == "fit":
            self.dynamics.update(is_recalled, facts)

    @override
    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        measured = {"efficacy_teacher_forced": self.val_efficacy.compute(), "nll": self.val_nll.compute()}
        if self.trainer.state.fn == "fit":
            self.dynamics.end_validation(self.current_epoch)
        is_measured, prepared = ~measured["nll"].isnan(), self.data.prepared
        for suffix, chosen in (("", prepared.is_kept), ("_dropped", prepared.is_dropped)):
            rows = torch.as_tensor(chosen, device=is_measured.device) & is_measured
            for name, values in measured.items() if rows.any() else ():
                self.log(f"val/{name}{suffix}", values[rows].mean(), prog_bar=not suffix, batch_size=1)
                if self.trainer.state.fn == "validate":  # not after every epoch of training
                    self._log_interval(f"val/{name}{suffix}", values[rows])
        self._log_stopping(self.val_text_efficacy.compute())
        for metric in (self.val_text_efficacy, self.val_nll, self.val_efficacy):
            metric.reset()

    def _log_stopping(self, is_recalled: Tensor) -> None:
        """Logs how well the kept facts are recalled in the forms that are asked during training.

        Args:
            is_recalled: Whether each text is recalled, float `(number of texts,)`; NaN where it was not asked.
        """
        prepared = self.data.prepared
        if not prepared.forms.has_stopping[prepared.is_kept].any():
            return
        of_facts = [is_recalled[list(prepared.forms.stopping[row])].mean() for row in prepared.kept_index]
        self.log("val/stopping_efficacy_teacher_forced", torch.stack(of_facts).nanmean(), prog_bar=True, batch_size=1)

    def _log_interval(self, name: str, values: Tensor) -> None:
        """Logs the bootstrap interval over facts as `<name>_low` and `<name>_high`."""
        interval = bootstrap_interval(values.double().cpu().numpy())
        assert interval is not None
        for end in ("low", "high"):
            self.log(f"{name}_{end}", getattr(interval, end), batch_size=1)

    def self_check(self, *, trains: bool = False) -> None:
        """Asks the model whether the fast ways are right for it, unless it was asked already. A collective.

        Args:
            trains: Whether the adapter is about to be trained.

        Raises:
            InputError: If no way is right, or the adapter would be trained on nothing.
        """
        data, trainer = self.data, self.trainer
        if trains:
            require_awake(self.model, data.prepared.forms.texts)
        cache = data.preparation.self_checks
        if cache is None or (is_checked(self.model) and not trains):
            return
        checks = SelfChecks(self.base_model, data.encoder, cache, str(trainer.precision))
        gathered = getattr(trainer.strategy, "gathered", nullcontext)  # `ShardedBaseStrategy`
        with gathered(), trainer.precision_plugin.forward_context():
            checks.check_on_all_ranks(self.model, trains=trains)

    @override
    def on_validation_start(self) -> None:
        self.self_check()

    @override
    def on_predict_start(self) -> None:
        self.self_check()

    @override
    def on_test_start(self) -> None:
        self.self_check()
        # The base model is not asked again for answers that are in the cache.
        # Of a loaded adapter, whose configuration is known only now.
        changed = base_changing_setting(self.model.active_peft_config)
        refuse_incompatible(Situation(stage="test", base_changing_setting=changed))
        data = self.data
        self._comparisons = []
        with self.model.disable_adapter():
            has_trees = measures_trees(self.model, self.prefix_tree)
        self._evaluator = Evaluator(
            data.encoder,
            data.distances,
            data.evaluation.doubt_turns,
            [fact.joiner for fact in data.prepared.facts],
            has_trees=has_trees and measures_trees(self.model, self.prefix_tree),
        )
        self._evaluator.base_answers = load_answers(data.answer_cache, self._answer_manifest(), data.questions)

    @override
    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        with eagerly():
            self._comparisons += self._evaluator.compare(self.model, questions)

    @override
    def on_test_epoch_end(self) -> None:
        prepared = self.data.prepared
        self.evaluation = Evaluation.of_all(
            from_all_ranks(self._comparisons), prepared.is_untouched, self.data.distances[0].name
        )
        self.gated = None if self.subject_table is None else through_gate(self.evaluation, self.subject_table)
        agreed(self._keep_base_answers)
        for name, value in self.evaluation.scalars(prepared.is_kept, prepared.is_dropped).items():
            self.log(f"test/{name}", value, batch_size=1)
        if self.gated is not None:
            gated = self.gated.evaluation.scalars(prepared.is_kept, prepared.is_dropped)
            for name, value in gated.items():
                self.log(f"test/gated/{name}", value, batch_size=1)

    def _keep_base_answers(self) -> None:
        if self._evaluator.base_answers is not None or not self.trainer.is_global_zero:
            return
        assert self.evaluation is not None
        answers = {row.question.number: row.before for row in self.evaluation.comparisons}
        if all(question.number in answers for question in self.data.questions):  # `limit_test_batches` asks some only
            store_answers(self.data.answer_cache, self._answer_manifest(), answers)

    def _answer_manifest(self) -> dict[str, Any]:
        """What the base model's answers depend on; trees round otherwise, as other batches do."""
        manifest = self.data.answer_manifest(EVALUATION_VERSION)
        return {**manifest, "prefix_tree": True} if self._evaluator.has_trees else manifest

    @override
    def predict_step(self, questions: list[Question], batch_idx: int) -> list[str]:
        evaluator = Evaluator(self.data.encoder, self.data.distances)
        table = self.subject_table
        is_open = [table is None or opens(table, question) for question in questions]
        answers: dict[int, str] = {}
        with eagerly():
            for side in sorted(set(is_open)):
                asked = [question for question, opened in zip(questions, is_open, strict=True) if opened == side]
                with nullcontext() if side else self.model.disable_adapter():
                    given = evaluator.free_answers(self.model, asked)
                answers |= {question.number: answer for question, answer in zip(asked, given, strict=True)}
        return [answers[question.number] for question in questions]
