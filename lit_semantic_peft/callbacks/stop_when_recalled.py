"""Ends a training when its facts are recalled."""

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import TrainingCallback
from lit_semantic_peft.training.optimization import Cooldown

logger = logging.getLogger(__name__)

_ROUNDING = 1e-6  # of a share in float32
_STOPPING, _OWN = "val/stopping_efficacy_teacher_forced", "val/efficacy_teacher_forced"


class StopWhenRecalled(TrainingCallback):
    """Ends `fit` when the facts are recalled in their stopping forms, or when recall no longer rises.

    It looks after each validation, so `trainer.check_val_every_n_epoch` says how often. Where no fact has a stopping
    form, the facts' own prompts count instead, which are recalled long before other forms are. The forms that are asked
    at the end decide nothing. Training then goes on for `cooldown_steps` optimizer steps, over which the learning rate
    falls linearly to 0 from where the schedule has it, or to its own end where that is nearer.

    Args:
        threshold: Recall that is enough, teacher-forced, share of the kept facts that are measured after an epoch,
            (0, 1].
        patience: In how many validations one after the other recall must be enough, ≥ 1.
        max_stale: After how many validations without a higher recall training ends too; None for never.
        cooldown_steps: Optimizer steps that are left when either is so, ≥ 0.

    Raises:
        InputError: If a setting is out of its range; in a training, if nothing is validated.
    """

    def __init__(
        self, threshold: float = 0.95, patience: int = 1, max_stale: int | None = None, cooldown_steps: int = 12
    ) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"`threshold` of StopWhenRecalled must be in (0, 1], got {threshold}")
        for name, value, least in (
            ("patience", patience, 1),
            ("max_stale", max_stale, 1),
            ("cooldown_steps", cooldown_steps, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"`{name}` of StopWhenRecalled must be at least {least}, got {value}")
        self.threshold = threshold
        self.patience = patience
        self.max_stale = max_stale
        self.cooldown_steps = cooldown_steps
        self._forget()

    @override
    def _forget(self) -> None:
        self._num_enough = self._num_stale = 0
        self._best = -1.0
        self._enough_at: int | None = None  # optimizer steps that were done then

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.limit_val_batches:
            raise InputError(
                "StopWhenRecalled looks at recall after each validation, but `trainer.limit_val_batches` is 0. Leave "
                "it out, or take the callback out."
            )
        self._cool_down(pl_module)  # of a checkpoint

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_due(trainer)  # where training has ended before

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop_if_due(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._enough_at is not None:
            return
        name = _STOPPING if _STOPPING in trainer.callback_metrics else _OWN
        recall = float(trainer.callback_metrics[name])  # of all ranks, so that they decide alike
        self._num_enough = self._num_enough + 1 if recall >= self.threshold - _ROUNDING else 0
        self._num_stale = 0 if recall > self._best else self._num_stale + 1
        self._best = max(self._best, recall)
        if self._num_enough >= self.patience:
            why = f"{name} is {recall:.3f}, at least {self.threshold:g}"
        elif self.max_stale is not None and self._num_stale >= self.max_stale:
            why = f"{name} has not risen above {self._best:.3f} in {self._num_stale} validations"
        else:
            return
        self._enough_at = trainer.global_step
        logger.info("Training ends %d steps after epoch %d: %s", self.cooldown_steps, trainer.current_epoch, why)
        self._cool_down(pl_module)
        self._stop_if_due(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "num_enough": self._num_enough,
            "num_stale": self._num_stale,
            "best": self._best,
            "enough_at": self._enough_at,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_enough, self._num_stale = state_dict["num_enough"], state_dict["num_stale"]
        self._best, self._enough_at = state_dict["best"], state_dict["enough_at"]

    def _cool_down(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if self._enough_at is not None and self.cooldown_steps:
            pl_module.cooldown = Cooldown(self._enough_at, self.cooldown_steps)

    def _stop_if_due(self, trainer: Trainer) -> None:
        if self._enough_at is not None and trainer.global_step >= self._enough_at + self.cooldown_steps:
            trainer.should_stop = True
