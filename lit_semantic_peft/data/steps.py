"""The optimizer steps of a training."""

import numpy as np
from lightning.pytorch import Trainer

from lit_semantic_peft.data.plans import BatchPlan
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.samplers import StepPlan
from lit_semantic_peft.data.second_pass import SecondPass
from lit_semantic_peft.errors import InputError


def planned_steps(
    prepared: PreparedFacts,
    batches: BatchPlan,
    seed: int,
    trainer: Trainer | None,
    second_pass: SecondPass | None = None,
) -> StepPlan:
    """The optimizer steps of a training; without a trainer those of one process without a limit.

    Args:
        prepared: The facts.
        batches: Which facts run together.
        seed: Of their order.
        trainer: Gives the length of the training and the number of processes.
        second_pass: Its last optimizer steps, where facts that resist are taught again.

    Raises:
        InputError: If training ends before the deferred facts come back.
    """
    rows = np.flatnonzero(prepared.is_trained).tolist()
    plan = StepPlan(
        rows,
        prepared.forms.length_of,
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
        second_pass=second_pass,
    )
    if trainer is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        before = plan.steps_before(plan.deferred_from_epoch)
        if 0 <= trainer.max_steps <= before > 0:
            raise InputError(
                f"`deferred_from_epoch` {plan.deferred_from_epoch} begins after {before} optimizer steps, but "
                f"`trainer.max_steps` is {trainer.max_steps}: training would end before the dropped facts come back."
            )
    return plan
