"""Watches during training which facts work against each other."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_semantic_peft.arguments import require_seed
from lit_semantic_peft.data import StepPlan
from lit_semantic_peft.data.loaders import text_batches
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_json
from lit_semantic_peft.interference import (
    fact_log_probability,
    gradient_matrix,
    time_forward_and_backward,
    train_alone,
)
from lit_semantic_peft.metrics import AloneVersusTogether, GradientInterference, distance_decile
from lit_semantic_peft.models.disk_space import DiskSpaceError
from lit_semantic_peft.reports import InterferenceRecord, RunFolder, write_interference
from lit_semantic_peft.reports.run_folder import RunPaths
from lit_semantic_peft.training import SemanticPeftModule, whole_base
from lit_semantic_peft.training.identity import FreshCallback
from lit_semantic_peft.training.interference_aware.fact_sample import agreed_gradient_matrix

logger = logging.getLogger(__name__)

_PILOT_FACTS = 8  # that training and a measurement are timed on


class InterferenceMonitor(FreshCallback):
    """Measures the gradient matrix of the kept facts: of a sample in training, of all of them at its end.

    There is hardly any interference at the start. It grows in training, so its history matters: a sample is measured
    before training and every n epochs or steps. Facts stand in their own prompts, in whatever forms they are taught, so
    that measurements can be compared. The matrix after training, from which the fact table and the report
    take their numbers, counts as evaluation. The monitor does not change training: modes, gradients and random
    generators are restored, and a run with it is the same as a run without it. Several processes share the rows of a
    matrix. Facts are weighted by the data module's loss weights at that step, without the factors of
    `InterferenceWeighting` and `Online`. Gradients of more than 1 GB are stored in a temporary file in the run folder,
    4 bytes for each fact and parameter. If the disk has no room for them, the measurement is left out with a warning.

    The size of the sample is chosen once, before training, so that its measurements take `time_budget` of the training
    time. Process 0 times a few facts in training and in a measurement; all processes use its result, also after a
    resume. So the load of the machine decides the size of the sample, though not what is trained; a number for
    `num_facts` fixes it. Training is timed in the trainer's precision, but through all layers, not compiled and without
    gradient checkpointing. If training is faster than that, the share is larger than planned; if slower, smaller.

    Logged metrics, each in the loggers under the optimizer step:

    - `interference/conflict_rate`: share of the pairs whose gradient cosine is below −0.05, [0, 1].
    - `interference/gradient_cosine_mean`: mean cosine of the pairs, [−1, 1].
    - `interference/net_transfer_median`: median of what the others do to a fact, relative to its own effect.
    - `interference/share_net_transfer_below_0`, `interference/share_net_transfer_below_minus_1`: shares of the facts
      that the others hurt on balance, and that the others undo, [0, 1].
    - `interference/harm_done_top_tenth`: share of all harm that the most harmful tenth of the facts does, [0, 1].
    - `interference/alone_versus_together`: with `alone_facts`, after training: mean of log p(target) of the own prompt
      after training minus that after as many steps on the fact alone, nats; below 0 the other facts cost.

    Args:
        num_facts: Size of the sample in training: a number, `all` kept facts, or `auto` for the time budget. 0 turns
            the monitor off, also after training.
        every_n_epochs: Epochs between two measurements; 0 for none after epochs.
        every_n_steps: Optimizer steps between two measurements, beside those of `every_n_epochs`; 0 for none.
        time_budget: With `auto`, the share of the training time that measurements may take, in (0, 1).
        final_facts: Most facts in the matrix after training; of more kept facts a sample is taken.
        alone_facts: Facts that are trained alone after training, from the same start, with the same optimizer, in the
            forms in which training taught them and as often, each epoch at its mean learning rate; 0 for none. Alone
            there is no dropout, no clipping, no loss weight, and nothing of `model.retain`: where training has that,
            the difference is what it and the other facts cost together, which the log and the file say.
        seed: Of the samples. A smaller sample is part of a larger one.
        batch_size: Facts per forward pass of a measurement.

    Attributes:
        clock: Gives the time in seconds, for the time budget.

    Raises:
        InputError: If a setting is out of its range; before training, if `alone_facts` has a single fact to compare.
    """

    clock: Callable[[], float] = time.perf_counter

    def __init__(
        self,
        num_facts: int | Literal["auto", "all"] = "auto",
        every_n_epochs: int = 2,
        every_n_steps: int = 0,
        time_budget: float = 0.1,
        final_facts: int = 512,
        alone_facts: int = 0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        if isinstance(num_facts, str) and num_facts not in ("auto", "all"):
            raise InputError(f"`num_facts` must be a number, `auto` or `all`, got {num_facts!r}")
        for name, value, least in (
            ("num_facts", num_facts if isinstance(num_facts, int) else 0, 0),
            ("every_n_epochs", every_n_epochs, 0),
            ("every_n_steps", every_n_steps, 0),
            ("final_facts", final_facts, 1),
            ("alone_facts", alone_facts, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        if not 0 < time_budget < 1:
            raise InputError(f"`time_budget` must be in (0, 1), got {time_budget}")
        require_seed(seed)
        self.num_facts: int | Literal["auto", "all"] = num_facts
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.time_budget = time_budget
        self.final_facts = final_facts
        self.alone_facts = alone_facts
        self.seed = seed
        self.batch_size = batch_size
        self._forget()

    @override
    def _forget(self) -> None:
        self.records: list[InterferenceRecord] = []
        self.latest: GradientInterference | None = None
        self.seconds_in_training = 0.0
        self.alone: AloneVersusTogether | None = None
        self._sample_size: int | None = None  # chosen once
        self._start: list[Tensor] | None = None  # the adapter before training
        self._rates: list[tuple[float, int]] = []  # sum and number of the learning rates of each epoch's steps
        self._measured_step = -1
        self._has_ended = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if self.num_facts and self.alone_facts and pl_module.data.prepared.is_trained.sum() < 2:
            raise InputError(
                "`alone_facts` of InterferenceMonitor asks what the other facts cost a fact, but only one is trained. "
                "Leave it out, or teach more facts."
            )
        if self._sample_size is None:
            self._sample_size = self._timed(self._decide_sample_size, trainer, pl_module)
        if trainer.global_step == 0:
            if self.alone_facts:
                self._start = [value.detach().cpu().clone() for value in _trained(pl_module)]
            self._measure_in_training(trainer, pl_module, epoch=0)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        while len(self._rates) <= trainer.current_epoch:
            self._rates.append((0.0, 0))
        total, count = self._rates[trainer.current_epoch]
        self._rates[trainer.current_epoch] = (total + float(optimizer.param_groups[0]["lr"]), count + 1)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, epoch = trainer.global_step, trainer.current_epoch
        if self.every_n_steps and step and step % self.every_n_steps == 0 and not _is_last_step(pl_module, epoch):
            self._measure_in_training(trainer, pl_module, epoch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if self.every_n_epochs and done % self.every_n_epochs == 0 and not _is_last_step(pl_module, done):
            self._measure_in_training(trainer, pl_module, epoch=done)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_ended = True
        if self.num_facts == 0:
            return
        assert isinstance(pl_module, SemanticPeftModule)
        logger.info("Interference: measuring took %.1f s of the training's time", self.seconds_in_training)
        done = trainer.current_epoch
        with whole_base(trainer):
            self._measure(trainer, pl_module, self.final_facts, epoch=done, last_trained=max(done - 1, 0))
        if self.latest is not None:
            self._write(trainer, pl_module, self.latest)
        if self.alone_facts and self._start is None:
            logger.warning("`alone_facts`: the run was started without it, so its start is not known; left out.")
        elif self.alone_facts:
            with whole_base(trainer):
                self._compare_alone(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Training had ended before this run was resumed: a checkpoint has the numbers, not the matrix.
        if not self._has_ended:
            pl_module.to(trainer.strategy.root_device)  # the strategy has moved it to the CPU
            self.on_train_end(trainer, pl_module)
            pl_module.cpu()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "records": [asdict(record) for record in self.records],
            "sample_size": self._sample_size,
            "start": self._start,
            "rates": self._rates,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = [InterferenceRecord(**record) for record in state_dict["records"]]
        self._sample_size = state_dict["sample_size"]
        self._start, self._rates = state_dict["start"], [tuple(pair) for pair in state_dict["rates"]]
        self._measured_step = self.records[-1].global_step or 0 if self.records else -1

    def _write(self, trainer: Trainer, module: SemanticPeftModule, metric: GradientInterference) -> None:
        result = metric.compute()  # a collective, as `by_group` is: every process takes part
        by_group = {name: metric.by_group(group) for name, group in _groups(module).items()}
        if trainer.is_global_zero:
            paths = RunFolder(trainer.default_root_dir).paths
            write_interference(
                paths.interference,
                result["gradient_dot"].cpu().numpy(),
                result["fact_index"].cpu().numpy(),
                epoch=self.records[-1].epoch,
                global_step=self.records[-1].global_step,
            )
            write_json(paths.interference_by_group, _without_nan(by_group), RunPaths.interference_by_group.kind)

    def _timed(self, work: Callable[..., Any], trainer: Trainer, *arguments: Any) -> Any:
        begin = self.clock()
        with whole_base(trainer):
            result = work(trainer, *arguments)
        self.seconds_in_training += self.clock() - begin
        return result

    def _decide_sample_size(self, trainer: Trainer, pl_module: LightningModule) -> int:
        assert isinstance(pl_module, SemanticPeftModule)
        num_trained = int(pl_module.data.prepared.is_trained.sum())
        if self.num_facts == "all":
            return num_trained
        if isinstance(self.num_facts, int):
            return min(self.num_facts, num_trained)
        size = self._size_for_budget(trainer, pl_module) if trainer.is_global_zero else 0
        size = int(trainer.strategy.broadcast(size))
        if size:
            logger.info("Interference: measured in training over a sample of %d of %d facts", size, num_trained)
        else:
            logger.info(
                "Interference: measured after training only; a sample of 2 facts would already take more than %.0f %% "
                "of so short a training. `--interference.num_facts 32` measures one all the same.",
                100 * self.time_budget,
            )
        return size

    def _size_for_budget(self, trainer: Trainer, module: SemanticPeftModule) -> int:
        """Facts whose measurements take the budget: share × training time = pilot + measurements × facts × seconds."""
        begin = self.clock()
        batches = self._batches(module, self._sample(module, _PILOT_FACTS))
        num_pilot = sum(len(batch) for batch in batches)
        precision = trainer.precision_plugin.train_step_context
        time_forward_and_backward(module.model, self._batches(module, self._sample(module, 1)), precision)  # warms up
        trained = time_forward_and_backward(module.model, batches, precision) / num_pilot
        measuring = self.clock()
        gradient_matrix(module.model, batches)
        measured = (self.clock() - measuring) / num_pilot
        pilot = self.clock() - begin

        num_kept = len(module.data.prepared.kept_index)
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        steps = module.num_optimizer_steps
        if not math.isfinite(steps):  # the share holds over each stretch between two measurements
            steps = self.every_n_steps or steps_per_epoch * max(self.every_n_epochs, 1)
        epochs = steps / steps_per_epoch
        measurements = 1.0
        if self.every_n_epochs:
            measurements += max(math.ceil(epochs / self.every_n_epochs) - 1, 0)
        if self.every_n_steps:
            measurements += steps // self.every_n_steps
        # Every process trains and measures its share of the facts, so their number cancels out.
        seconds = self.time_budget * epochs * num_kept * trained - pilot
        size = int(seconds / (measurements * measured))
        return min(size, num_kept) if size >= 2 else 0  # one fact has no other

    def _measure_in_training(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        if not self._sample_size or self._measured_step == trainer.global_step:
            return
        assert isinstance(pl_module, SemanticPeftModule)
        self._timed(self._measure, trainer, pl_module, self._sample_size, epoch, trainer.current_epoch)

    def _measure(self, trainer: Trainer, module: SemanticPeftModule, size: int, epoch: int, last_trained: int) -> None:
        """A record for `epoch`, over the facts and with the weights of the epoch that runs or was the last to run.

        Without disk space for the gradients there is no record and no `latest`, but training goes on.
        """
        prepared = module.data.prepared
        trained = prepared.trained_index(last_trained)
        sample = self._chosen(trained, size)
        metric = GradientInterference(
            fact_index=sample,
            loss_weight=torch.tensor(module.loss_weights.planned(sample, last_trained)),
            num_trained_facts=len(trained),
        ).to(module.device)
        self.latest, self._measured_step = None, trainer.global_step
        try:
            matrix = agreed_gradient_matrix(module, sample, self.batch_size)
        except DiskSpaceError as error:
            logger.warning("Interference after optimizer step %d is not measured: %s", trainer.global_step, error)
            return
        rows = torch.arange(trainer.global_rank, len(sample), trainer.world_size)  # the metric adds the ranks up
        metric.update(matrix[rows], rows)
        self.latest = metric
        self._keep(trainer, metric.summary(), epoch)

    def _keep(self, trainer: Trainer, scalars: dict[str, float], epoch: int) -> None:
        """A record and the loggers' scalars; a record of the same step is replaced."""
        record = InterferenceRecord(
            epoch=epoch,
            global_step=trainer.global_step,
            conflict_rate=scalars["conflict_rate"],
            net_transfer_median=scalars["net_transfer_median"],
            share_net_transfer_below_minus_1=scalars["share_net_transfer_below_minus_1"],
            share_net_transfer_below_0=scalars["share_net_transfer_below_0"],
        )
        self.records = [one for one in self.records if one.global_step != trainer.global_step] + [record]
        for one in trainer.loggers:
            logged = {f"interference/{name}": value for name, value in scalars.items() if name != "num_undefined_facts"}
            one.log_metrics(logged, step=trainer.global_step)

    def _compare_alone(self, trainer: Trainer, module: SemanticPeftModule) -> None:
        """Trains some facts alone, each process its share, and writes what the others cost them."""
        prepared, pad_id = module.data.prepared, module.data.encoder.pad_id
        # A fact without weight was not taught.
        chosen = self._chosen(
            [row for row in prepared.kept_index if prepared.weights.is_ever_above_0[row]], self.alone_facts
        )
        taught = self._taught(trainer, module, chosen)
        steps_alone = sum(len(steps) for steps in taught.values()) / max(len(taught), 1)
        metric = AloneVersusTogether(len(prepared.facts), trainer.global_step, steps_alone).to(module.device)
        alike = defaultdict(list)  # facts with as many steps at the same rates run together
        for row in chosen[trainer.global_rank :: trainer.world_size]:
            alike[tuple(rate for _, rate in taught[row])].append(row)
        for rates, rows in alike.items():
            for batch in self._batches(module, rows):
                steps = zip(*([text for text, _ in taught[row]] for row in batch.fact_index.tolist()), strict=True)
                texts = [text_batches(prepared, of_facts, len(batch), pad_id)[0] for of_facts in steps]
                together = fact_log_probability(module.model, batch)
                alone = train_alone(module.model, batch, rates, module.optimizer_of, self._start, texts=texts)
                metric.update(together, alone, batch.fact_index)
        only_together = sorted({source.kind for source in module.retain})
        if only_together:
            logger.warning(
                "`alone_facts`: facts were trained alone without `model.retain` (%s), so the difference is what that "
                "and the other facts cost together.",
                ", ".join(only_together),
            )
        result = metric.compute()
        self.alone = metric
        for one in trainer.loggers:
            one.log_metrics({"interference/alone_versus_together": float(result["mean"])}, step=trainer.global_step)
        if trainer.is_global_zero:
            differences = zip(prepared.facts, result.pop("difference").tolist(), strict=True)
            by_fact = {fact.id: value for fact, value in differences if not math.isnan(value)}
            summary = {name: value.item() for name, value in result.items()} | {"only_together": only_together}
            path = RunFolder(trainer.default_root_dir).paths.alone_versus_together
            write_json(path, _without_nan({**summary, "difference": by_fact}), RunPaths.alone_versus_together.kind)

    def _taught(
        self, trainer: Trainer, module: SemanticPeftModule, rows: Sequence[int]
    ) -> dict[int, list[tuple[int, float]]]:
        """By fact, the text and the epoch's mean learning rate of each optimizer step that taught it."""
        assert trainer.train_dataloader is not None
        plan: StepPlan = trainer.train_dataloader.sampler
        forms = module.data.prepared.forms
        found: dict[int, list[tuple[int, float]]] = {row: [] for row in rows}
        for epoch, (total, num_steps) in enumerate(self._rates):
            taught = plan.taught(epoch, num_steps)
            for row in rows:
                found[row] += [(forms.text_of(row, one), total / num_steps) for one in taught.get(row, [])]
        return found

    def _sample(self, module: SemanticPeftModule, size: int) -> list[int]:
        return self._chosen(module.data.prepared.trained_index(module.current_epoch), size)

    def _chosen(self, rows: Sequence[int], size: int) -> list[int]:
        return sorted(np.random.default_rng(self.seed).permutation(rows)[:size].tolist())

    def _batches(self, module: SemanticPeftModule, sample: Sequence[int]) -> list[Any]:
        return module.data.training_batches(sample, self.batch_size)


def _trained(module: LightningModule) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _is_last_step(module: LightningModule, epochs_done: int) -> bool:
    assert isinstance(module, SemanticPeftModule)
    trainer = module.trainer
    may_stop = epochs_done >= (trainer.min_epochs or 0) and module.global_step >= (trainer.min_steps or 0)
    return (trainer.should_stop and may_stop) or module.global_step >= module.num_optimizer_steps


def _groups(module: SemanticPeftModule) -> dict[str, list[Any]]:
    """Relation, decile of distance, and stratum where it was measured, of every fact."""
    columns = module.data.prepared.columns()
    groups: dict[str, list[Any]] = {"relation": columns["relation"]}
    if module.data.prepared.scored.stratum:
        groups["stratum"] = columns["stratum"]
    deciles = distance_decile(torch.tensor(columns["distance"], dtype=torch.float64)).tolist()
    return {**groups, "distance_decile": [decile or None for decile in deciles]}


def _without_nan(value: Any) -> Any:
    """NaN is no JSON: null instead."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
