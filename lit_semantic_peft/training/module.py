"""The LightningModule: a PEFT model under a distance-weighted loss that is exact however a step is cut up."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from transformers import get_scheduler

from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts, agreed, from_all_ranks
from lit_semantic_peft.data.moved import refuse_moved
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Question, load_answers, store_answers
from lit_semantic_peft.evaluation.evaluator import EVALUATION_VERSION, Comparison, Evaluator
from lit_semantic_peft.evaluation.measured_scores import Scores, measure_scores
from lit_semantic_peft.metrics import LearningDynamics, PerFactMean, PushedAway, share
from lit_semantic_peft.models import (
    DEFAULT_BASE_MODEL,
    BaseModel,
    FrozenLayers,
    adapter_state_dict,
    attach_adapter,
    base_changing_setting,
    fact_nll,
    frozen_layers_obstacle,
    load_adapter,
    load_adapter_state_dict,
    traits_of,
    weight_normalizer,
)
from lit_semantic_peft.models.compiled import compile_layers, eagerly
from lit_semantic_peft.semantics.online import Online, nll_and_online_weight
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.statistics import bootstrap_interval
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training.identity import refuse_another_adapter, refuse_another_training, training_identity
from lit_semantic_peft.training.own_gradient import refuse_loss_scaling, sum_over_ranks, unflattened
from lit_semantic_peft.training.penalties import RetainPenalty

logger = logging.getLogger(__name__)

Normalization = Literal["step_weights", "step_count"]
Schedule = Literal["constant", "linear", "cosine"]

_CHECKPOINT_KEY = "lit_semantic_peft"
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
# Settings of an optimizer that decide how a step is computed, not what it is.
_SPEED = {"foreach", "fused", "capturable", "differentiable"}


class SemanticPeftModule(LightningModule):
    """Wraps a PEFT model with the distance-weighted objective.

    The loss of an optimizer step is Σ w_i ℓ_i / S over all its facts, ℓ_i the mean negative log-likelihood of fact i's
    target tokens and S = Σ w_i (`step_weights`) or the number of facts with w_i > 0 (`step_count`): the same whatever
    the micro-batch size, accumulation, padding or number of processes.

    Logged metrics:

    - `train/loss`: that loss, nats per token, each optimizer step.
    - `train/loss_epoch`: its mean over the epoch's optimizer steps.
    - `train/grad_norm`: Euclidean norm of the adapter's gradient before clipping, each optimizer step.
    - `train/retain_kl`: mean divergence from the base model on the optimizer step's retained facts, nats per token,
      [0, ∞), each optimizer step where `retain_weight` > 0.
    - `val/recall`: share of kept facts that are recalled teacher-forced, [0, 1], each validation.
    - `val/nll`: mean negative log-likelihood of the kept facts, nats per token, each validation.
    - `val/recall_dropped`, `val/nll_dropped`: the same for the facts that are not kept, where there are any; deferred
      ones stay among them when they are trained.
    - `test/recall`, `test/recall_generated`, each also with `_dropped`: share of facts that are recalled
      teacher-forced, and whose free answer is exactly right, [0, 1].
    - `test/pushed_away`: share of kept facts that are farther after training than before, [0, 1].
    - `test/<score>`, `test/<score>_low`, `test/<score>_high`: each score of `training.scores.SCORES` that was measured,
      trained model, mean over the kept facts with its 95 % bootstrap interval.

    Args:
        base_model: A `BaseModel`, or its name: `smollm2-135m` (needs no network), a Hub name, a local folder or a local
            GGUF file.
        peft_config: Any configuration of `peft`; LoRA of rank 8 on all linear layers where None.
        adapter: Folder of an exported adapter to load instead of a new one, for test and predict.
        optimizer: Builds the optimizer from the adapter's parameters.
        schedule: Learning rate after warm-up: `constant`, or down by `linear` or `cosine` so that the step behind the
            last one would have 0.
        warmup_ratio: Share of all optimizer steps over which the learning rate rises linearly, in [0, 1): from 0 in the
            first step, which changes nothing then, to the whole in the first one after warm-up.
        normalization: S of the objective.
        retain_weight: λ ≥ 0; adds λ times the mean KL divergence from the base model at the target positions of
            facts of the split `retain` to the loss, see `RetainPenalty`. 0 costs nothing.
        retain_batch_size: `retain` facts per optimizer step, over all processes.
        retain_known: Whether facts that are not trained because the base model says them already are retained too.
        compile: Whether training runs compiled layers (`torch.compile`), which takes a minute at the first step and
            pays for long runs only; evaluation and measurements run the ordinary model. Needs a C++ compiler on a CPU.
        gradient_checkpointing: Whether activations are recomputed in the backward pass to save memory.
        reuse_frozen_layers: Whether what the layers below the lowest adapter make of a fact is computed once and kept,
            which is exact. None: where the model allows it and it fits into `frozen_layers_memory_mb`. True: always; an
            error where the model does not allow it, on disk where it does not fit.
        frozen_layers_memory_mb: How much of it each process keeps in memory at most, in MB (10⁶ bytes).

    Raises:
        InputError: If a setting is out of its range; from `configure_model`, if the model cannot be had or the
            adapter does not fit it; from `setup`, if `adapter` is given for a training; during training, if the loss
            is not finite.
    """

    @refuse_moved("model")
    def __init__(
        self,
        base_model: BaseModel | str = DEFAULT_BASE_MODEL,
        peft_config: PeftConfig | None = None,
        adapter: str | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0),
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.1,
        normalization: Normalization = "step_weights",
        retain_weight: float = 0.0,
        retain_batch_size: int = 16,
        retain_known: bool = False,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        reuse_frozen_layers: bool | None = None,
        frozen_layers_memory_mb: int = 2048,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio < 1:
            raise InputError(f"`warmup_ratio` must be in [0, 1), got {warmup_ratio}")
        if not (math.isfinite(retain_weight) and retain_weight >= 0):
            raise InputError(f"`retain_weight` must be a finite number of at least 0, got {retain_weight}")
        if retain_batch_size < 1:
            raise InputError(f"`retain_batch_size` must be at least 1, got {retain_batch_size}")
        if frozen_layers_memory_mb < 0:
            raise InputError(f"`frozen_layers_memory_mb` must be at least 0, got {frozen_layers_memory_mb}")
        for name, value, allowed in (
            ("normalization", normalization, get_args(Normalization)),
            ("schedule", schedule, get_args(Schedule)),
        ):
            if value not in allowed:
                raise InputError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")
        self.base_model = BaseModel.of(base_model)
        self.peft_config = peft_config or LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        self.adapter = adapter
        self.optimizer_of = optimizer
        self.schedule: Schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.normalization: Normalization = normalization
        self.retain_weight = retain_weight
        self.retain_batch_size = retain_batch_size
        self.retain_known = retain_known
        self.is_compiled = compile  # `compile` is a method of every nn.Module
        self.gradient_checkpointing = gradient_checkpointing
        self.reuse_frozen_layers = reuse_frozen_layers
        self.frozen_layers_memory_mb = frozen_layers_memory_mb
        self.strict_loading = False  # the base's weights are not in a checkpoint; the adapter's are checked below
        self.comparisons: list[Comparison] = []
        self.scores: Scores | None = None
        self.is_pushed_away = torch.zeros(0, dtype=torch.bool)
        self._model: PeftModel | None = None
        self._frozen: FrozenLayers | None = None
        self._step_totals: Tensor | None = None
        self._retain: RetainPenalty | None = None
        self._rng_state: dict[str, Tensor] | None = None
        self._rank_budget: dict[str, Any] = {}

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
        if self._model is None:
            self._model = self.new_model()

    def new_model(self) -> PeftModel:
        """The base model with an adapter of its own, as it is trained; this module keeps what it has. A collective.

        Raises:
            InputError: If the model cannot be had, or the adapter does not fit it.
        """
        model = agreed(self._load)
        if self.gradient_checkpointing:
            base = model.get_base_model()
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            # A hook that only reentrant checkpoints need, and that cannot be sent to a spawned process.
            base.disable_input_require_grads()
        if self.is_compiled:
            compile_layers(model)
        return model.train()  # Lightning keeps the modes that it finds; dropout belongs to training

    def _load(self) -> PeftModel:
        if self.gradient_checkpointing and (reason := traits_of(self.peft_config).cannot.get("gradient_checkpointing")):
            raise InputError(
                f"`gradient_checkpointing` cannot be used with {type(self.peft_config).__name__}, which {reason}. "
                "Leave it out."
            )
        base = self.base_model.load()
        if self.adapter:
            return load_adapter(base, self.adapter, self.base_model.source)
        return attach_adapter(base, self.peft_config)

    def refuse_adapter(self) -> None:
        """Refuses `adapter` for a training, which always makes a new one.

        Raises:
            InputError: If `adapter` is given.
        """
        if self.adapter:
            raise InputError(
                f"`model.adapter` {self.adapter!r} is for `test` and `predict`; `fit` trains a new adapter. Leave it "
                "out, or go on with an interrupted run by `--ckpt_path last`."
            )

    def setup(self, stage: str) -> None:
        """Checks the trainer's settings and makes the metrics, which need the number of facts.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self._check_precision()
        if stage == "predict":
            return
        if stage == "fit":
            self.refuse_adapter()
        data = self.data
        if self.trainer.accumulate_grad_batches < 1:
            raise InputError(
                f"`accumulate_grad_batches` must be at least 1, got {self.trainer.accumulate_grad_batches}"
            )
        if "DeepSpeed" in type(self.trainer.strategy).__name__:
            raise InputError(
                "`strategy: deepspeed` accumulates gradients by itself, which breaks the exact normalisation over an "
                "optimizer step. Use `ddp`."
            )
        if self._is_sharded and not hasattr(self.trainer.strategy, "average_gradients"):
            raise InputError(
                f"`strategy`: {type(self.trainer.strategy).__name__} would cut the adapter up too. Use "
                "`lit_semantic_peft.training.ShardedBaseStrategy`, which shards the base model alone."
            )
        if self._is_sharded and self.retain_weight:
            raise InputError("`retain_weight` cannot be used with a sharded base model. Use `strategy: ddp`.")
        if self._is_sharded and isinstance(data.weighting, Online) and not data.weighting.weighting.needs_nll:
            raise InputError(
                "`weighting` Online over a distance cannot be used with a sharded base model, whose embeddings no "
                "process has whole. Use `strategy: ddp`, or a weighting by likelihood."
            )
        retained = _retained(data.prepared, self.retain_known) if self.retain_weight else []
        data.retain(retained)
        if stage == "fit" and "loss_scaling" in traits_of(self.peft_config).cannot:
            refuse_loss_scaling(self.trainer, f"peft_config: {type(self.peft_config).__name__}")
        if stage == "fit" and self.retain_weight:
            refuse_loss_scaling(self.trainer, "retain_weight")
            if retained or not self.retain_known:
                self._retain = RetainPenalty(self.retain_weight, self.retain_batch_size, retained, data.seed)
            else:
                logger.warning("`retain_weight` does nothing: no fact was dropped as known, none has split `retain`")
        num_facts = len(data.prepared.facts)
        if stage != "test":
            self.val_nll = PerFactMean(num_facts)
            self.val_recall = PerFactMean(num_facts)
        if stage == "fit":
            # `on_fit_end` reads it when the strategy has moved it to the CPU, where nccl gathers nothing.
            self.dynamics = LearningDynamics(num_facts, sync_on_compute=False)
            self.epoch_loss = MeanMetric()
            self.epoch_loss.persistent(True)
            self._step_totals = None  # of an earlier training that was interrupted within a step

    def _check_precision(self) -> None:
        precision = self.trainer.precision
        if precision in ("bf16-true", "16-true"):
            raise InputError(
                f"`trainer.precision: {precision}` would train the adapter itself in half precision, where small steps "
                "are lost. Use `32-true` with `model.base_model.dtype: bfloat16` for a bfloat16 base under a float32 "
                "adapter, and `bf16-mixed` for products in bfloat16."
            )
        if precision not in _PRECISIONS:
            raise InputError(f"`trainer.precision` must be one of {', '.join(_PRECISIONS)}, got {precision}")

    # --------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Decides whether the frozen layers' outputs are kept, and goes on with the rank budget of a resumed run."""
        self._frozen = self._frozen_layers()
        traits_of(self.model).load_extra_state(self.model, self._rank_budget)

    def on_fit_end(self) -> None:
        """Lets go of the frozen layers' outputs."""
        self._frozen = None

    def on_train_start(self) -> None:
        """Says how long the training is, and continues the random numbers of the run that is resumed."""
        if math.isfinite(self.num_optimizer_steps):
            per_step = (
                self.data.batches.micro_batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
            )
            logger.info("Optimizer steps: %d, of at most %d facts each", self.num_optimizer_steps, per_step)
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state["cpu"])
            if "cuda" in self._rng_state:
                torch.cuda.set_rng_state(self._rng_state["cuda"], self.device)
            self._rng_state = None

    def on_train_epoch_start(self) -> None:
        """Nothing of the epoch before must leak into this one, neither an interrupted step nor its losses."""
        self._step_totals = None
        self.epoch_loss.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Σ w_i ℓ_i of one micro-batch, not yet normalised: S is known only when the optimizer step is complete.

        Args:
            batch: The facts.
            batch_idx: Number of the micro-batch in the epoch.

        Returns:
            Scalar, connected to every adapter parameter also when nothing in the batch counts.
        """
        weighted_sum = (batch.loss_weight * self._nll(batch)).sum()
        normalizer = weight_normalizer(batch.loss_weight, self.normalization)
        totals = torch.stack([weighted_sum.detach(), normalizer])
        self._step_totals = totals if self._step_totals is None else self._step_totals + totals
        return weighted_sum

    def _nll(self, batch: Batch) -> Tensor:
        weighting = self.data.weighting
        if not isinstance(weighting, Online):
            return fact_nll(self.model, batch, frozen=self._frozen)
        nll, factor = nll_and_online_weight(
            self.model,
            batch,
            weighting,
            self.data.distances[0],
            has_end=self.data.encoding.append_eos,
            frozen=self._frozen,
        )
        # In place: callbacks that read the step's weights afterwards must see those of the loss.
        batch.loss_weight.mul_(factor.to(batch.loss_weight))
        return nll

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
        if normalizer == 0 and self._retain is None:
            # No fact counts in this step: without gradients the optimizer skips its parameters.
            for parameter in self._trained_parameters():
                parameter.grad = None
            return
        loss = weighted_sum / normalizer if normalizer else weighted_sum
        if not torch.isfinite(totals).all():
            raise InputError(
                f"`train/loss` is {loss} at optimizer step {self.global_step + 1}; training cannot go on. Lower the "
                "learning rate, clip gradients (`trainer.gradient_clip_val: 1.0`), or use `dtype: float32`."
            )
        average = getattr(self.trainer.strategy, "average_gradients", None)
        if average is not None:  # `ShardedBaseStrategy`; others did it in the backward pass
            average(self._trained_parameters())
        # Where no fact counts the gradients are zero, and only what is held in place remains.
        factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / normalizer if normalizer else 0.0
        gradients = [parameter.grad for parameter in self._trained_parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._add_penalty_of_the_adapter()
        self._add_retain_gradient()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.log("train/grad_norm", norm, on_step=True, batch_size=1)
        if normalizer == 0:
            return
        self.log("train/loss", loss, prog_bar=True, on_step=True, batch_size=1)
        self.epoch_loss.update(loss)
        # Named, because Lightning remembers the metrics of an earlier training of this module.
        self.log(
            "train/loss_epoch",
            self.epoch_loss,
            on_step=False,
            on_epoch=True,
            batch_size=1,
            metric_attribute="epoch_loss",
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps; then lets the adapter do what its type does between the step and zero_grad."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        traits_of(self.model).after_optimizer_step(self.model, self.global_step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the adapter's parameters, and a schedule with warm-up over all optimizer steps."""
        optimizer = self.optimizer_of(self._trained_parameters())
        num_steps = self.num_optimizer_steps
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

    @property
    def num_optimizer_steps(self) -> float:
        """Optimizer steps of the whole training; infinite where neither `max_epochs` nor `max_steps` ends it.

        Lightning takes every epoch to be as long as the one that runs, which deferred facts make wrong.
        """
        trainer = self.trainer
        estimate = trainer.estimated_stepping_batches  # loads the training data
        if self.data.prepared.deferred_from_epoch is None or trainer.max_epochs in (None, -1):
            return estimate
        assert trainer.train_dataloader is not None
        num_steps: int = trainer.train_dataloader.sampler.steps_before(trainer.max_epochs)
        return num_steps if trainer.max_steps == -1 else min(num_steps, trainer.max_steps)

    def loss_weight_now(self, rows: Sequence[int], epoch: int | None = None) -> np.ndarray:
        """The data module's loss weights in the coming optimizer step, which a `Scheduled` weighting moves.

        Args:
            rows: Fact indices.
            epoch: The epoch among whose facts the weights count; the current one where None.

        Returns:
            float64 `(len(rows),)`; those of `Online`, which are known within a step only, count 1.
        """
        assert self.trainer.train_dataloader is not None
        progress = self.trainer.train_dataloader.sampler.progress_at(self.global_step)
        return self.data.prepared.loss_weight_at(rows, self.current_epoch if epoch is None else epoch, progress)

    def _frozen_layers(self) -> FrozenLayers | None:
        if self.reuse_frozen_layers is False:
            return None
        if self.reuse_frozen_layers is None and (self._is_sharded or frozen_layers_obstacle(self.model)):
            return None
        if self._is_sharded:  # ranks would wait for each other's shards while they need them for different facts
            raise InputError("`reuse_frozen_layers` cannot be used: the strategy shards the layers over the ranks.")
        prepared = self.data.prepared
        num_tokens = sum(len(prepared.encoded[row]) for row in np.flatnonzero(prepared.is_trained))
        frozen = FrozenLayers(self.model, num_tokens, self.frozen_layers_memory_mb)
        if self.reuse_frozen_layers is None and not frozen.fits_in_memory:
            return None
        logger.info("The %d lowest layers run once for each fact, not in every epoch", frozen.num_layers)
        return frozen

    @property
    def _is_sharded(self) -> bool:
        return isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy)

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _add_penalty_of_the_adapter(self) -> None:
        # Independent of the facts, so it is added to the finished gradient instead of being normalised with them.
        penalty = traits_of(self.model).penalty(self.model)
        if penalty is None:
            return
        parameters = self._trained_parameters()
        gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient

    def _add_retain_gradient(self) -> None:
        # Once per optimizer step, whatever its micro-batches are: beside the facts, like the regulariser above.
        if self._retain is None:
            return
        data, parameters = self.data, self._trained_parameters()
        rows = self._retain.rows(self.global_step)[self.global_rank :: self.trainer.world_size]
        batches = data.training_batches(rows, data.batches.micro_batch_size, with_end=False)
        precision = self.trainer.precision_plugin.train_step_context
        with eagerly():
            mean, gradient = self._retain.gradient(self.model, parameters, batches, precision)
        total = sum_over_ranks(self.trainer, torch.cat([mean[None], gradient]))
        for parameter, part in zip(parameters, unflattened(total[1:], parameters), strict=True):
            if parameter.grad is not None:
                parameter.grad += part
        self.log("train/retain_kl", total[0], on_step=True, batch_size=1)

    # ------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Likelihood and teacher-forced recall of each fact.

        Args:
            batch: Facts without end tokens.
            batch_idx: Number of the batch.
        """
        if self.trainer.sanity_checking:
            return
        with eagerly():
            scores = score_targets(self.model, batch)
        self.val_nll.update(scores.nll, batch.fact_index)
        self.val_recall.update(scores.is_recalled, batch.fact_index)
        if self.trainer.state.fn == "fit":
            self.dynamics.update(scores.is_recalled, batch.fact_index)

    def on_validation_epoch_end(self) -> None:
        """Logs recall and likelihood of the kept and of the other facts; `validate` adds intervals over facts."""
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
        """Logs the ends of the bootstrap interval over facts as `<name>_low` and `<name>_high`."""
        interval = bootstrap_interval(values.double().cpu().numpy())
        assert interval is not None
        for end in ("low", "high"):
            self.log(f"{name}_{end}", getattr(interval, end), batch_size=1)

    def on_test_start(self) -> None:
        """Starts a new list of comparisons; answers of the base model that are known already are not asked again."""
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

    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        """Asks base model and trained model the same questions, freely and teacher-forced.

        Args:
            questions: What to ask.
            batch_idx: Number of the batch.
        """
        with eagerly():
            self.comparisons += self._evaluator.compare(self.model, questions)

    def on_test_epoch_end(self) -> None:
        """Collects the comparisons of all ranks, each question once, in order, and logs what they say."""
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

    def predict_step(self, questions: list[Question], batch_idx: int) -> list[str]:
        """Free greedy answers.

        Args:
            questions: What to ask.
            batch_idx: Number of the batch.

        Returns:
            One answer per question, in order.
        """
        with eagerly():
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
        """Adds what the adapter belongs to, the state of the metrics, and each rank's random generators."""
        rng_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng_state["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint[_CHECKPOINT_KEY] = {
            "base_model": self.base_model.source.public_name,
            "base_fingerprint": self.base_model.source.fingerprint,
            **self._identity(),
            "dynamics": self.dynamics.state_dict(),
            "epoch_loss": self.epoch_loss.state_dict(),
            "rank_budget": traits_of(self.model).extra_state(self.model),
            "rng": from_all_ranks(rng_state),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another base model, and to continue a training that would not be the same.

        Raises:
            InputError: Naming each setting that differs, with both values.
        """
        about = checkpoint.get(_CHECKPOINT_KEY)
        if about is None:
            raise InputError("The checkpoint was not written by lit-semantic-peft, so it cannot be loaded here.")
        if about["base_fingerprint"] != self.base_model.source.fingerprint:
            raise InputError(
                f"`base_model`: the checkpoint belongs to {about['base_model']!r}; this is "
                f"{self.base_model.source.public_name!r}, or the same model with other weights."
            )
        if self.trainer.state.fn != "fit":
            refuse_another_adapter(about, self.model.active_peft_config)
            return
        name = type(self.data).__qualname__  # under which Lightning keeps and looks for its state
        if name not in checkpoint:
            raise InputError(
                f"The checkpoint does not say where a data module of class {name} went on. Resume with the class that "
                "it was trained with."
            )
        refuse_another_training(
            about,
            self._identity(),
            [fact.id for fact in self.data.prepared.facts],
            is_within_epoch=checkpoint[name]["num_done"] > 0,
        )
        self.dynamics.load_state_dict(about["dynamics"])
        self.epoch_loss.load_state_dict(about["epoch_loss"])
        self._rank_budget = about["rank_budget"]
        self._rng_state = about["rng"][self.trainer.global_rank % len(about["rng"])]

    def _identity(self) -> dict[str, Any]:
        own = ["normalization", "schedule", "warmup_ratio", "retain_weight"]
        if self.retain_weight:
            own += ["retain_batch_size", "retain_known"]
        return training_identity(
            self.data,
            self.trainer,
            {
                "dtype": self.base_model.dtype,
                **{name: getattr(self, name) for name in own},
                **self._optimizer_settings(),
            },
            self.model.peft_config[self.model.active_adapter],
        )

    def _optimizer_settings(self) -> dict[str, object]:
        # Lightning puts the checkpoint's own settings back into the optimizer, so that other ones would do nothing.
        # Of the trained parameters: an optimizer may refuse those of another shape, as Muon does all but matrices.
        optimizer = self.optimizer_of(self._trained_parameters())
        settings = {f"optimizer.{name}": value for name, value in optimizer.defaults.items() if name not in _SPEED}
        return {"optimizer": type(optimizer).__name__, **settings}


def _retained(prepared: PreparedFacts, with_known: bool) -> list[int]:
    is_known = prepared.scored.is_known & ~prepared.is_trained
    return [
        row
        for row, fact in enumerate(prepared.facts)
        if fact.split == "retain" or (with_known and fact.split == "inject" and is_known[row])
    ]
