"""The optimizer steps of a training, and rules about its length that the data module's settings depend on."""

import numpy as np
from lightning.pytorch import Trainer

from lit_semantic_peft.data.plans import BatchPlan
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.samplers import StepPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import Weighting


def check_length(trainer: Trainer, weighting: Weighting, deferred_from_epoch: int | None) -> None:
    """Refuses a training that is cut short where the settings need to know its course; a trial run has none.

    Args:
        trainer: The trainer; where facts are deferred, it is told to make a loader for each epoch.
        weighting: From distance to loss weight.
        deferred_from_epoch: Epoch from which dropped facts are trained too; None for never.

    Raises:
        InputError: If the trainer's settings do not fit.
    """
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise InputError(
            "`trainer.overfit_batches` cannot be used: batches are planned by optimizer step. `data.num_facts` "
            "trains on a few facts."
        )
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if deferred_from_epoch is not None:
        _prepare_deferral(trainer, deferred_from_epoch)
    start, end = weighting.start_and_end
    if start is not end:
        name = f"`weighting` {type(weighting).__name__}"
        _require_whole_epochs(trainer, name)
        if trainer.max_epochs in (None, -1) and trainer.max_steps < 0:
            raise InputError(
                f"{name} moves from the start to the end of training, so that must be known: set "
                "`trainer.max_epochs` or `trainer.max_steps`."
            )


def planned_steps(prepared: PreparedFacts, batches: BatchPlan, seed: int, trainer: Trainer | None) -> StepPlan:
    """The optimizer steps of a training; without a trainer those of one process that goes on without end.

    Args:
        prepared: The facts.
        batches: Which facts run together.
        seed: Of their order.
        trainer: Says how long training is, and over how many processes.

    Raises:
        InputError: If training ends before the deferred facts come back.
    """
    rows = np.flatnonzero(prepared.is_trained).tolist()
    plan = StepPlan(
        rows,
        [len(prepared.encoded[row]) for row in rows],
        micro_batch_size=batches.micro_batch_size,
        accumulate_grad_batches=trainer.accumulate_grad_batches if trainer else 1,
        world_size=trainer.world_size if trainer else 1,
        rank=trainer.global_rank if trainer else 0,
        seed=seed,
        bucket_steps=batches.bucket_steps,
        max_epochs=trainer.max_epochs if trainer else None,
        max_steps=trainer.max_steps if trainer else -1,
        mix=[prepared.scored.stratum[row] for row in rows] if batches.mix_strata else None,
        deferred=np.flatnonzero(prepared.is_deferred).tolist(),
        deferred_from_epoch=prepared.weights.deferred_from_epoch or 0,
    )
    if trainer is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        before = plan.steps_before(plan.deferred_from_epoch)
        if 0 <= trainer.max_steps <= before > 0:
            raise InputError(
                f"`deferred_from_epoch` {plan.deferred_from_epoch} begins after {before} optimizer steps, but "
                f"`trainer.max_steps` is {trainer.max_steps}: training would end before the dropped facts come back."
            )
    return plan


def _prepare_deferral(trainer: Trainer, first_epoch: int) -> None:
    """Has a loader made for each epoch, since epochs differ in length, and refuses what would cut them short."""
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= first_epoch:
        raise InputError(
            f"`deferred_from_epoch` must be below `trainer.max_epochs`, which is {trainer.max_epochs}, got "
            f"{first_epoch}: epochs count from 0, so training would end before the dropped facts come back."
        )
    _require_whole_epochs(trainer, "`deferred_from_epoch`")
    trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]


def _require_whole_epochs(trainer: Trainer, what: str) -> None:
    limit = trainer.limit_train_batches  # a count or a share: 1 is one micro-batch, 1.0 is all
    if isinstance(limit, int) or limit != 1.0:
        raise InputError(
            f"{what} needs whole epochs, but `trainer.limit_train_batches` is {limit}. Leave it out; `data.num_facts` "
            "makes a run short as well."
        )
