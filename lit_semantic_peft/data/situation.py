"""What the rules of `compatibility` need to know of a trainer and of the data module's settings."""

import warnings
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lit_semantic_peft.compatibility import refuse_incompatible
from lit_semantic_peft.data.prepare import Preparation
from lit_semantic_peft.data.ranks import agreed
from lit_semantic_peft.situation import Situation


@runtime_checkable
class KnowsSituation(Protocol):
    """A module that has settings which the rules of `compatibility` read."""

    def complete_situation(self, situation: Situation) -> Situation:
        """Adds this module's settings.

        Args:
            situation: Of trainer and data module.
        """
        ...

    def check_adapter(self) -> None:
        """Refuses an adapter that does not fit the base model, before facts are scored; changes nothing."""
        ...


def check_trainer(trainer: Trainer, stage: str, preparation: Preparation) -> None:
    """Refuses what cannot go together, and makes Lightning build a loader for each epoch if epochs differ in length.

    Args:
        trainer: The trainer, before anything is read or scored.
        stage: As in `situation_of`.
        preparation: The data module's settings.

    Raises:
        InputError: For the first rule of `compatibility` that is broken.
    """
    refuse_incompatible(situation_of(trainer, stage, preparation))
    if preparation.selection.deferred_from_epoch is not None:
        reload_every_epoch(trainer)


def reload_every_epoch(trainer: Trainer) -> None:
    """Makes Lightning build a loader for each epoch, since epochs differ in length.

    What it then says of each loader, and in other trainings once, is not shown.

    Args:
        trainer: The trainer.
    """
    trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
    for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", message=message)


def check_adapter(trainer: Trainer | None) -> None:
    """Refuses an adapter of the trainer's module that does not fit its base model. A collective.

    Args:
        trainer: The trainer; without one, or without a module that has an adapter, there is nothing to refuse.

    Raises:
        InputError: On all ranks.
    """
    module = trainer.lightning_module if trainer else None
    if isinstance(module, KnowsSituation):
        agreed(module.check_adapter)


def prefix_tree_setting(trainer: Trainer | None) -> bool | None:
    """`prefix_tree` of the trainer's module; None where there is none.

    Args:
        trainer: The trainer, if there is one.
    """
    setting: bool | None = getattr(trainer.lightning_module if trainer else None, "prefix_tree", None)
    return setting


def situation_of(trainer: Trainer, stage: str, preparation: Preparation) -> Situation:
    """The situation of a trainer and its data module; the trainer's module adds its own fields, if it has any.

    Args:
        trainer: The trainer.
        stage: `fit`, `validate`, `test`, `predict` or `score`.
        preparation: The data module's settings.
    """
    selection, weighting, distance = preparation.selection, preparation.weighting, preparation.distances[0]
    of_trainer: Any = trainer
    start, end = weighting.start_and_end
    inner = getattr(weighting, "weighting", weighting)  # inside `Online`, which applies it to the step's own logits
    situation = Situation(
        stage=stage,
        callbacks=frozenset(kind.__name__ for one in of_trainer.callbacks for kind in type(one).__mro__),
        strategy=type(trainer.strategy).__name__,
        is_sharded=is_sharded(trainer),
        shards_adapter=is_sharded(trainer) and not hasattr(trainer.strategy, "average_gradients"),
        num_processes=trainer.world_size,
        precision=str(trainer.precision),
        accumulate_grad_batches=trainer.accumulate_grad_batches,
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
        token_weighting=None if selection.token_weighting is None else type(selection.token_weighting).__name__,
        token_weighting_reads_embeddings=getattr(selection.token_weighting, "reads_embeddings", False),
        is_scheduled=start is not end,
        append_eos=preparation.encoding.append_eos,
        deferred_from_epoch=selection.deferred_from_epoch,
        mix_strata=preparation.batches.mix_strata,
    )
    module = trainer.lightning_module
    return module.complete_situation(situation) if isinstance(module, KnowsSituation) else situation


def is_sharded(trainer: Trainer) -> bool:
    """Whether a trainer's strategy shards the base model over the processes.

    Args:
        trainer: The trainer.
    """
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
