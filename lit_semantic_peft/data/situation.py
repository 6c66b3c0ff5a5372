"""What the rules of `compatibility` need to know of a trainer and of the data module's settings."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lit_semantic_peft.compatibility import Situation
from lit_semantic_peft.data.plans import BatchPlan, SelectionPlan
from lit_semantic_peft.semantics import Distance, Weighting


def situation_of(
    trainer: Trainer,
    stage: str,
    *,
    selection: SelectionPlan,
    batches: BatchPlan,
    weighting: Weighting,
    distance: Distance,
) -> Situation:
    """The situation of a trainer and its data module, completed by the trainer's module where that has more to say.

    Args:
        trainer: The trainer.
        stage: `fit`, `validate`, `test`, `predict` or `score`.
        selection: Which facts are trained.
        batches: Which facts run together.
        weighting: From distance to loss weight.
        distance: What the weighting reads.
    """
    of_trainer: Any = trainer
    start, end = weighting.start_and_end
    inner = getattr(weighting, "weighting", weighting)  # what `Online` makes of the step's own logits
    is_sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
    situation = Situation(
        stage=stage,
        callbacks=frozenset(kind.__name__ for one in of_trainer.callbacks for kind in type(one).__mro__),
        strategy=type(trainer.strategy).__name__,
        is_sharded=is_sharded,
        shards_adapter=is_sharded and not hasattr(trainer.strategy, "average_gradients"),
        num_processes=trainer.world_size,
        precision=str(trainer.precision),
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        limit_train_batches=trainer.limit_train_batches,
        overfit_batches=of_trainer.overfit_batches,
        is_trial=bool(of_trainer.fast_dev_run),
        weighting=type(weighting).__name__,
        distance=distance.name,
        is_online=weighting.is_online,
        reads_distance=not inner.needs_nll,
        distance_needs_answers=distance.needs_answers,
        is_scheduled=start is not end,
        deferred_from_epoch=selection.deferred_from_epoch,
        mix_strata=batches.mix_strata,
    )
    complete = getattr(trainer.lightning_module, "complete_situation", None)
    return situation if complete is None else complete(situation)
