"""The LightningModule: a PEFT model under a distance-weighted loss that is exact however a step is cut up."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import get_scheduler

from lit_semantic_peft.data import KnowledgeDataModule, Question
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.metrics import LearningDynamics, PerFactMean, PushedAway
from lit_semantic_peft.models import (
    DEFAULT_BASE_MODEL,
    BaseDtype,
    BaseModelSource,
    adapter_state_dict,
    attach_adapter,
    fact_nll,
    load_adapter,
    load_adapter_state_dict,
    load_base_model,
    resolve_base_model,
    weight_normalizer,
)
from lit_semantic_peft.models.adapters import orthogonality_penalty
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training.evaluation import EVALUATION_VERSION, Comparison, Evaluator
from lit_semantic_peft.training.scores import Scores, measure_scores

Normalization = Literal["step_weights", "step_count"]
Schedule = Literal["constant", "linear", "cosine"]

_CHECKPOINT_KEY = "lit_semantic_peft"


class SemanticPeftModule(LightningModule):
    """Wraps a PEFT model with the distance-weighted objective.

    The loss of an optimizer step is Σ w_i ℓ_i / S over all its facts, ℓ_i the mean negative log-likelihood of fact i's
    target tokens and S = Σ w_i (`step_weights`) or the number of facts with w_i > 0 (`step_count`): the same whatever
    the micro-batch size, accumulation, padding or number of processes.

    Logged metrics:

    - `train/loss`: that loss, nats per token, each optimizer step.
    - `train/loss_epoch`: its mean over the epoch's optimizer steps.
    - `train/grad_norm`: Euclidean norm of the adapter's gradient before clipping, each optimizer step.
    - `val/recall`: share of kept facts that are recalled teacher-forced, [0, 1], each validation.
    - `val/nll`: mean negative log-likelihood of the kept facts, nats per token, each validation.
    - `val/recall_dropped`, `val/nll_dropped`: the same for the facts that are not trained, where there are any.
    - `test/recall`, `test/recall_generated`, each also with `_dropped`: share of facts that are recalled
      teacher-forced, and whose free answer is exactly right, [0, 1].
    - `test/pushed_away`: share of kept facts that are farther after training than before, [0, 1].
    - `test/<score>`, `test/<score>_low`, `test/<score>_high`: each score of `training.scores.SCORES` that was measured,
      trained model, mean over the kept facts with its 95 % bootstrap interval.

    Args:
        base_model: `smollm2-135m` (needs no network), a Hub name, a local folder or a local GGUF file.
        peft_config: Any configuration of `peft`; LoRA of rank 8 on all linear layers where None.
        adapter: Folder of an exported adapter to load instead of a new one, for test and predict.
        optimizer: Builds the optimizer from the adapter's parameters.
        schedule: Learning rate after warm-up: `constant`, `linear` or `cosine` down to 0 at the last step.
        warmup_ratio: Share of all optimizer steps over which the learning rate rises from 0, in [0, 1).
        normalization: S of the objective.
        dtype: Type of the base weights in memory; the adapter is float32 in any case.
        gradient_checkpointing: Whether activations are recomputed in the backward pass to save memory.
        revision: Branch, tag or commit of a Hub model.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: If a setting is out of its range; from `configure_model`, if the model cannot be had or the
            adapter does not fit it; during training, if the loss is not finite.
    """

    def __init__(
        self,
        base_model: str = DEFAULT_BASE_MODEL,
        peft_config: PeftConfig | None = None,
        adapter: str | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0),
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.1,
        normalization: Normalization = "step_weights",
        dtype: BaseDtype = "float32",
        gradient_checkpointing: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio < 1:
            raise InputError(f"`warmup_ratio` must be in [0, 1), got {warmup_ratio}")
        for name, value, allowed in (
            ("normalization", normalization, get_args(Normalization)),
            ("schedule", schedule, get_args(Schedule)),
        ):
            if value not in allowed:
                raise InputError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")
        self.base_model = base_model
        self.revision = revision
        self.dtype_of_base: BaseDtype = dtype
        self.trust_remote_code = trust_remote_code
        self.peft_config = peft_config or LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        self.adapter = adapter
        self.optimizer_of = optimizer
        self.schedule: Schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.normalization: Normalization = normalization
        self.gradient_checkpointing = gradient_checkpointing
        self.strict_loading = False  # the base's weights are not in a checkpoint; the adapter's are checked below
        self.comparisons: list[Comparison] = []
        self.scores: Scores | None = None
        self.is_pushed_away = torch.zeros(0, dtype=torch.bool)
        self._source: BaseModelSource | None = None
        self._model: PeftModel | None = None
        self._step_totals: Tensor | None = None

    # ------------------------------------------------------------------ model

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
    def source(self) -> BaseModelSource:
        """Where the base model comes from."""
        if self._source is None:
            self._source = resolve_base_model(self.base_model, self.revision)
        return self._source

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

    def configure_model(self) -> None:
        """Loads the base model and attaches the adapter, once."""
        if self._model is not None:
            return
        base = load_base_model(self.source, self.dtype_of_base, self.trust_remote_code)
        if self.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()
        model = load_adapter(base, self.adapter) if self.adapter else attach_adapter(base, self.peft_config)
        self._model = model.train()  # Lightning keeps the modes that it finds; dropout belongs to training

    def setup(self, stage: str) -> None:
        """Checks the trainer's settings and makes the metrics, which need the number of facts.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage == "predict":
            return
        data = self.data
        if (data.base_model, data.revision) != (self.base_model, self.revision):
            raise InputError(
                f"`base_model` is {self.base_model!r} in the module and {data.base_model!r} in the data module; "
                "facts would be measured against another model than the one that is trained."
            )
        if "DeepSpeed" in type(self.trainer.strategy).__name__:
            raise InputError(
                "`strategy: deepspeed` accumulates gradients by itself, which breaks the exact normalisation over an "
                "optimizer step. Use `ddp`."
            )
        num_facts = len(data.prepared.facts)
        if stage != "test" and not hasattr(self, "val_nll"):
            self.val_nll = PerFactMean(num_facts)
            self.val_recall = PerFactMean(num_facts)
            self.dynamics = LearningDynamics(num_facts)

    # --------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        """An interrupted step of the epoch before must not leak into this one."""
        self._step_totals = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Σ w_i ℓ_i of one micro-batch, not yet normalised: S is known only when the optimizer step is complete.

        Args:
            batch: The facts.
            batch_idx: Number of the micro-batch in the epoch.

        Returns:
            Scalar, connected to every adapter parameter also when nothing in the batch counts.
        """
        weighted_sum = (batch.loss_weight * fact_nll(self.model, batch)).sum()
        normalizer = weight_normalizer(batch.loss_weight, self.normalization)
        totals = torch.stack([weighted_sum.detach(), normalizer])
        self._step_totals = totals if self._step_totals is None else self._step_totals + totals
        return weighted_sum

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turns the accumulated gradient into that of Σ w_i ℓ_i / S, before it is clipped.

        Lightning divided each micro-batch's loss by `accumulate_grad_batches` (also in a partial last window) and the
        strategy averaged over the ranks; both are undone here.

        Args:
            optimizer: The optimizer whose step follows.

        Raises:
            InputError: On all ranks alike, if the loss of the step is not finite.
        """
        assert self._step_totals is not None
        totals = self.trainer.strategy.reduce(self._step_totals, reduce_op="sum")
        assert isinstance(totals, Tensor)
        self._step_totals = None
        weighted_sum, normalizer = totals.tolist()
        if normalizer == 0:
            # No fact counts in this step: without gradients the optimizer skips its parameters.
            for parameter in self._trained_parameters():
                parameter.grad = None
            return
        loss = weighted_sum / normalizer
        if not torch.isfinite(totals).all():
            raise InputError(
                f"`train/loss` is {loss} at optimizer step {self.global_step + 1}; training cannot go on. Lower the "
                "learning rate, clip gradients (`trainer.gradient_clip_val: 1.0`), or use `dtype: float32`."
            )
        factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / normalizer
        gradients = [parameter.grad for parameter in self._trained_parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._add_orthogonality_gradient()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.log("train/loss", loss, prog_bar=True, on_step=True, batch_size=1)
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=1)
        self.log("train/grad_norm", norm, on_step=True, batch_size=1)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps; then lets AdaLoRA move its rank budget, which it does between the step and zero_grad."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        allocate = getattr(self.model.base_model, "update_and_allocate", None)
        if allocate is not None:
            allocate(self.global_step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the adapter's parameters, and a schedule with warm-up over all optimizer steps."""
        optimizer = self.optimizer_of(self._trained_parameters())
        num_steps = self.trainer.estimated_stepping_batches
        if num_steps == float("inf"):
            if self.schedule != "constant" or self.warmup_ratio > 0:
                raise InputError(
                    "`schedule` and `warmup_ratio` need to know how long training is: set `trainer.max_epochs` or "
                    "`trainer.max_steps`, or use `schedule: constant` with `warmup_ratio: 0`."
                )
            return optimizer
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        scheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=round(self.warmup_ratio * num_steps),
            num_training_steps=int(num_steps),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _add_orthogonality_gradient(self) -> None:
        # Independent of the facts, so it is added to the finished gradient instead of being normalised with them.
        penalty = orthogonality_penalty(self.model)
        if penalty is None:
            return
        parameters = self._trained_parameters()
        gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient

    # ------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Likelihood and teacher-forced recall of each fact.

        Args:
            batch: Facts without end tokens.
            batch_idx: Number of the batch.
        """
        if self.trainer.sanity_checking:
            return
        scores = score_targets(self.model, batch)
        self.val_nll.update(scores.nll, batch.fact_index)
        self.val_recall.update(scores.is_recalled, batch.fact_index)
        self.dynamics.update(scores.is_recalled, batch.fact_index)

    def on_validation_epoch_end(self) -> None:
        """Logs recall and likelihood of the kept and of the other facts."""
        if self.trainer.sanity_checking:
            return
        nll, recall = self.val_nll.compute(), self.val_recall.compute()
        self.dynamics.end_epoch(self.current_epoch)
        is_kept = torch.as_tensor(self.data.prepared.is_kept, device=nll.device)
        for suffix, rows in (("", is_kept), ("_dropped", ~is_kept)):
            rows = rows & ~nll.isnan()
            if rows.any():
                self.log(f"val/recall{suffix}", recall[rows].mean(), prog_bar=not suffix, batch_size=1)
                self.log(f"val/nll{suffix}", nll[rows].mean(), prog_bar=not suffix, batch_size=1)
        self.val_nll.reset()
        self.val_recall.reset()

    def on_test_start(self) -> None:
        """Starts a new list of comparisons; answers of the base model that are known already are not asked again."""
        data = self.data
        self.comparisons = []
        self._evaluator = Evaluator(
            data.encoder,
            data.distances,
            data.evaluation.doubt_turns,
            [fact.joiner for fact in data.prepared.facts],
            data.answer_cache.load(data.answer_manifest(EVALUATION_VERSION)),
        )

    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        """Asks base model and trained model the same questions, freely and teacher-forced.

        Args:
            questions: What to ask.
            batch_idx: Number of the batch.
        """
        self.comparisons += self._evaluator.compare(self.model, questions)

    def on_test_epoch_end(self) -> None:
        """Collects the comparisons of all ranks, each question once, in order, and logs what they say."""
        gathered = [self.comparisons]
        if self.trainer.world_size > 1:
            gathered = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self.comparisons)
        by_number = {row.question.number: row for rows in gathered for row in rows}
        self.comparisons = [by_number[number] for number in sorted(by_number)]
        data = self.data
        if self._evaluator.base_answers is None and self.trainer.is_global_zero:
            answers = ((row.question.number, row.before) for row in self.comparisons)
            data.answer_cache.store(data.answer_manifest(EVALUATION_VERSION), answers)
        is_kept = torch.as_tensor(data.prepared.is_kept)
        self.scores = measure_scores(self.comparisons, len(is_kept), is_kept)
        for name, value in self.scores.scalars(is_kept).items():
            self.log(f"test/{name}", value, batch_size=1)
        facts = [row for row in self.comparisons if row.question.kind == "fact"]
        # The comparisons are those of all ranks already, so there is nothing left to reduce.
        pushed_away = PushedAway(len(is_kept), sync_on_compute=False)
        name = data.distances[0].name
        pushed_away.update(
            torch.tensor([row.before.distances[name] for row in facts]),
            torch.tensor([row.after.distances[name] for row in facts]),
            torch.tensor([row.question.fact_index for row in facts]),
        )
        self.is_pushed_away = pushed_away.compute()["is_pushed_away"]
        self.log("test/pushed_away", self.is_pushed_away[is_kept].float().mean(), batch_size=1)

    def predict_step(self, questions: list[Question], batch_idx: int) -> list[str]:
        """Free greedy answers.

        Args:
            questions: What to ask.
            batch_idx: Number of the batch.

        Returns:
            One answer per question, in order.
        """
        return Evaluator(self.data.encoder, self.data.distances).free_answers(self.model, questions)

    # ------------------------------------------------------------ checkpoints

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter alone, under PEFT's names; the base model is named, not copied."""
        return adapter_state_dict(self.model) if self._model is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Puts an adapter back.

        Args:
            state_dict: From `state_dict`.
            strict: Ignored: a missing, unexpected or misshapen tensor is always an error.
            assign: Ignored.

        Raises:
            InputError: Naming the tensors that do not fit.
        """
        self.configure_model()
        load_adapter_state_dict(self.model, state_dict)
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the adapter belongs to, the learning dynamics, and the state of the random generator."""
        checkpoint[_CHECKPOINT_KEY] = {
            "base_model": self.source.public_name,
            "base_fingerprint": self.source.fingerprint,
            "facts_key": self.data.prepared.key,
            "dynamics": self.dynamics.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another base model, or to continue training on other facts.

        Raises:
            InputError: Saying what differs.
        """
        about = checkpoint.get(_CHECKPOINT_KEY)
        if about is None:
            raise InputError("The checkpoint was not written by lit-semantic-peft, so it cannot be loaded here.")
        if about["base_fingerprint"] != self.source.fingerprint:
            raise InputError(
                f"The checkpoint belongs to base model {about['base_model']!r}; this is {self.source.public_name!r}, "
                "or the same model with other weights."
            )
        if self.trainer.state.fn != "fit":
            return
        if about["facts_key"] != self.data.prepared.key:
            raise InputError(
                "The checkpoint was trained on other facts, or on the same ones with another filter or weighting. "
                "Resume with the configuration in the run's config.yaml, or start a new run."
            )
        self.dynamics.load_state_dict(about["dynamics"])
        torch.set_rng_state(about["rng"])
