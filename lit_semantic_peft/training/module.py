"""The LightningModule: a PEFT model under a distance-weighted loss that is exact however a step is split."""

import logging
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from typing_extensions import override

from lit_semantic_peft import arguments
from lit_semantic_peft.adapters import SubjectGate
from lit_semantic_peft.data import agreed
from lit_semantic_peft.data.moved import refuse_moved
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import (
    DEFAULT_BASE_MODEL,
    BaseModel,
    adapter_state_dict,
    attach_adapter,
    load_adapter,
    load_adapter_state_dict,
    traits_of,
)
from lit_semantic_peft.models.attach import recompute_activations, require_answer
from lit_semantic_peft.models.compiled import compile_layers
from lit_semantic_peft.situation import Situation
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training.evaluating import EvaluatingModule
from lit_semantic_peft.training.forward import ForwardPass, forward_pass, with_penalty
from lit_semantic_peft.training.identity import Resumed, resume_training, write_training_state
from lit_semantic_peft.training.loss_weights import LossWeights
from lit_semantic_peft.training.optimization import (
    Cooldown,
    Schedule,
    checked_optimizer,
    num_optimizer_steps,
    rate_in_words,
    with_schedule,
)
from lit_semantic_peft.training.penalties import fact_penalty
from lit_semantic_peft.training.retain import HeldStill
from lit_semantic_peft.training.situation import with_settings_of
from lit_semantic_peft.training.step import Normalization, finish_step, micro_batch_terms

logger = logging.getLogger(__name__)


class SemanticPeftModule(EvaluatingModule):
    """Wraps a PEFT model with the distance-weighted objective.

    The loss of an optimizer step is Σ w_i ℓ_i / S over all its facts, ℓ_i the mean negative log-likelihood of fact i's
    target tokens and S = Σ w_i (`step_weights`) or the number of facts with w_i > 0 (`step_count`): the same whatever
    the micro-batch size, accumulation, padding or number of processes.

    Logged metrics:

    - `train/loss`: that loss, nats per token, each optimizer step.
    - `train/loss_epoch`: its mean over the epoch's optimizer steps.
    - `train/grad_norm`: Euclidean norm of the adapter's gradient before clipping, each optimizer step.
    - `train/retain_kl`: what `retain` adds to the loss: Σ λ · mean divergence from the base model, nats per token,
      [0, ∞), each optimizer step with retained text; `train/retain_kl/<source>`: a source's mean, without its λ.
    - `val/…`, `test/…`: see `EvaluatingModule`.

    Args:
        base_model: A `BaseModel`, or its name: `smollm2-135m` (needs no network), a Hub name, a local folder or a local
            GGUF file.
        peft_config: Any configuration of `peft`, which is copied; LoRA of rank 8 on all linear layers where None.
        adapter: Folder of an exported adapter to load instead of a new one, for test and predict.
        optimizer: Builds the optimizer from the adapter's parameters; AdamW without weight decay where None, at the
            learning rate of the adapter's type (`PeftTraits.learning_rate`).
        schedule: Learning rate after warm-up: `constant`, or `linear` or `cosine` decay that would reach 0 one step
            after the last.
        warmup_ratio: Share of all optimizer steps over which the learning rate rises linearly, in [0, 1): from 0 in the
            first step, which changes nothing, to the full rate in the first step after warm-up.
        normalization: What a step's loss is divided by, S above: the sum of the weights, or the number of facts.
        retain: What is held still: sources of text on which the adapter must predict what the base model predicts, see
            `RetainSource`, the divergence of each added to the loss, normalised apart from the facts; and
            `InputDirections`. None costs nothing.
        gate: Which prompts the adapter acts on once it is trained (`SubjectGate`); on all where None.
        compile: Whether training runs compiled layers (`torch.compile`), which takes a minute at the first step and
            pays for long runs only; evaluation and measurements run the ordinary model. Needs a C++ compiler on a CPU.
        gradient_checkpointing: Whether activations are recomputed in the backward pass to save memory.
        reuse_frozen_layers: Whether the output of the layers below the lowest adapter is computed once per fact and
            reused, which is exact. None: where the model allows it and it fits into `frozen_layers_memory_mb`. True:
            always; an error where the model does not allow it, on disk where it does not fit.
        frozen_layers_memory_mb: Most memory for these outputs in each process, in MB (10⁶ bytes).
        prefix_tree: Whether a micro-batch runs as one prefix tree, without padding and with the tokens that its facts
            share from their beginning once; same loss, but for rounding. None: where the self-check finds that it is
            exact. True: always; an error where the self-check finds that it is not. Facts that are only measured too,
            padded where trees are not exact.

    Attributes:
        cooldown: How the learning rate ends where the training is about to end ahead of time. The callback
            `StopWhenRecalled` sets it; the `setup` of a training forgets it.

    Raises:
        InputError: If a setting is out of its range; from `configure_model`, if the model is not found or the
            adapter does not fit it; from `setup`, if `adapter` is given for a training; during training, if the loss
            is not finite.
    """

    @refuse_moved("model")
    def __init__(
        self,
        base_model: BaseModel | str = DEFAULT_BASE_MODEL,
        peft_config: PeftConfig | None = None,
        adapter: str | None = None,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.1,
        normalization: Normalization = "step_weights",
        retain: list[HeldStill] | None = None,
        gate: SubjectGate | None = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        reuse_frozen_layers: bool | None = None,
        frozen_layers_memory_mb: int = 2048,
        prefix_tree: bool | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio < 1:
            raise InputError(f"`warmup_ratio` must be in [0, 1), got {warmup_ratio}")
        arguments.require_whole_number("frozen_layers_memory_mb", frozen_layers_memory_mb, 0)
        arguments.require_instance("peft_config", peft_config, PeftConfig | None, "LoraConfig(r=8)")
        arguments.require_instances("retain", retain, HeldStill, "OwnSamples()")
        arguments.require_instance("gate", gate, SubjectGate | None, "SubjectGate()")
        arguments.require_one_of("normalization", normalization, get_args(Normalization))
        arguments.require_one_of("schedule", schedule, get_args(Schedule))
        arguments.require_text("adapter", adapter, "the folder of an adapter")
        self.base_model = BaseModel.of(base_model)
        self.peft_config = deepcopy(peft_config or LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        self.adapter = adapter
        self.optimizer_of = checked_optimizer(optimizer, self.peft_config)
        self.schedule: Schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.normalization: Normalization = normalization
        self.retain = retain or []
        self.gate = gate
        self.is_compiled = compile  # `compile` is a method of every nn.Module
        self.gradient_checkpointing = gradient_checkpointing
        self.reuse_frozen_layers = reuse_frozen_layers
        self.frozen_layers_memory_mb = frozen_layers_memory_mb
        self.prefix_tree = prefix_tree
        self.strict_loading = False  # the base's weights are not in a checkpoint; the adapter's are checked below
        self._forward: ForwardPass | None = None
        self._retained_means: Tensor | None = None
        self._step_terms: Tensor | None = None
        self._resumed: Resumed | None = None
        self.cooldown: Cooldown | None = None

    # ------------------------------------------------------------------ model

    @override
    def configure_model(self) -> None:
        if self._model is None:
            self._model = self.new_model()

    def new_model(self) -> PeftModel:
        """The base model with a new adapter, ready for training; this module's model is not changed. A collective.

        Raises:
            InputError: If the model is not found, or the adapter does not fit it.
        """
        model = agreed(self._load)
        if self.gradient_checkpointing:
            recompute_activations(model)
        if self.is_compiled:
            compile_layers(model)
        return model.train()  # Lightning keeps the modes that it finds; dropout belongs to training

    def _load(self) -> PeftModel:
        base = self.base_model.load()
        if self.adapter:
            self.read_gate(self.adapter)
            return load_adapter(base, self.adapter, self.base_model.source)
        return attach_adapter(base, self.peft_config)

    def check_adapter(self) -> None:
        """Attaches or loads the adapter, runs it once and discards it, so that nothing is scored for one that fails.

        The random generator and this module's model are not changed.

        Raises:
            InputError: If the base model is not found, or the adapter does not fit it.
        """
        if self._model is None:
            with torch.random.fork_rng(devices=[]):
                require_answer(self._load())

    def complete_situation(self, situation: Situation) -> Situation:
        """Adds what the rules of `compatibility` need to know of this module, see `KnowsSituation`.

        Args:
            situation: Of trainer and data module.
        """
        return with_settings_of(self, situation)

    @override
    def setup(self, stage: str) -> None:
        if stage == "predict":
            return
        data = self.data
        data.retain(sorted({row for source in self.retain for row in source.rows(data.prepared)}))
        super().setup(stage)
        if stage == "fit":
            self.learn_names(self.peft_config)
            self.loss_weights = LossWeights(data)
            self.epoch_loss = MeanMetric()
            self.epoch_loss.persistent(True)
            self._step_terms = self._resumed = self.cooldown = None  # of an earlier training that was interrupted

    # --------------------------------------------------------------- training

    @override
    def on_fit_start(self) -> None:
        self.self_check(trains=True)
        self._forward = forward_pass(self, begins=self._resumed is None)
        if self._resumed is not None:
            traits_of(self.model).load_extra_state(self.model, self._resumed.adapter)

    @override
    def on_fit_end(self) -> None:
        self._forward = None

    @override
    def on_train_start(self) -> None:
        if math.isfinite(self.num_optimizer_steps):
            num_micro_batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
            per_step = self.data.batches.micro_batch_size * num_micro_batches
            logger.info("Optimizer steps: %d, of at most %d facts each", self.num_optimizer_steps, per_step)
        logger.info("%s", rate_in_words(self.trainer.optimizers[0], self.peft_config))
        if self._resumed is not None:
            self._resumed.state_length(self.num_optimizer_steps, self.schedule)
            self._resumed.restore_random_state(self.device)
            self._resumed = None

    @override
    def on_train_epoch_start(self) -> None:
        # Nothing of the epoch before must leak into this one: no interrupted step, no losses, no weights.
        self._step_terms = self._retained_means = None
        self.loss_weights.start_epoch()
        self.epoch_loss.reset()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Connected to every adapter parameter also when nothing in the batch counts.
        assert self._forward is not None
        outputs, held = self._forward.run(self.trainer, batch)
        nll, weight = self.loss_weights.nll_and_weight(self.model, batch, outputs)
        weighted_sum, terms = micro_batch_terms(nll, weight, self.normalization, fact_penalty(self.model, weight))
        self._step_terms = terms if self._step_terms is None else self._step_terms + terms
        loss, self._retained_means = with_penalty(self.trainer, weighted_sum, self._step_terms, held)
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        assert self._step_terms is not None
        assert self._forward is not None
        self.loss_weights.end_step()
        result = finish_step(
            self, self._step_terms, self.trained_parameters(), self._forward.retain, self._retained_means
        )
        self._step_terms = self._retained_means = None
        if result is None:
            return
        for name, value in result.retain_kl.items():
            self.log(f"train/{name}", value, on_step=True, batch_size=1)
        self.log("train/grad_norm", result.gradient_norm, on_step=True, batch_size=1)
        if result.loss is None:
            return
        self.log("train/loss", result.loss, prog_bar=True, on_step=True, batch_size=1)
        self.epoch_loss.update(result.loss)
        # Named, because Lightning remembers the metrics of an earlier training of this module.
        of_epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "metric_attribute": "epoch_loss"}
        self.log("train/loss_epoch", self.epoch_loss, batch_size=1, **of_epoch)

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        traits_of(self.model).after_optimizer_step(self.model, self.global_step)  # before zero_grad
        assert self._forward is not None
        self._forward.keep_out()

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer_of(self.trained_parameters())
        steps, second_pass = self.num_optimizer_steps, self.data.second_pass
        return with_schedule(optimizer, self.schedule, self.warmup_ratio, steps, second_pass, lambda: self.cooldown)

    @property
    def num_optimizer_steps(self) -> float:
        """Optimizer steps of the whole training; infinite where neither `max_epochs` nor `max_steps` ends it."""
        return num_optimizer_steps(self.trainer, self.data.prepared)

    @property
    def retained_tokens_per_step(self) -> float:
        """Mean number of tokens of retained text in an optimizer step, over all processes; 0 outside of training."""
        retain = None if self._forward is None else self._forward.retain
        return 0.0 if retain is None else retain.tokens_per_step

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the optimizer: the adapter's."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # ------------------------------------------------------------ checkpoints

    @override
    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter alone, under PEFT's names; the base model is named, not copied."""
        return adapter_state_dict(self.model) if self._model is not None else {}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads an adapter's tensors.

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

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        write_training_state(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = resume_training(self, checkpoint)
