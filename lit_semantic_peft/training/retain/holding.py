"""What a training holds still, made ready when it begins."""

from typing import TYPE_CHECKING

from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.input_directions import HeldDirections, InputDirections
from lit_semantic_peft.training.retain.penalty import RetainPenalty, with_texts
from lit_semantic_peft.training.retain.source import RetainSource

if TYPE_CHECKING:
    from lit_semantic_peft.training.module import SemanticPeftModule


def held_still(module: "SemanticPeftModule", *, begins: bool) -> tuple[RetainPenalty | None, list[HeldDirections]]:
    """The penalty of a training, and the directions that its adapter keeps out of. A collective.

    The first rank finds the texts, what the base model predicts, and the directions.

    Args:
        module: With its model, in a trainer.
        begins: Whether its adapter is new.

    Returns:
        The penalty, None where no source has a text; and the directions of each `InputDirections`.

    Raises:
        InputError: On all ranks, if a source refuses what the user gave.
    """
    trainer, data = module.trainer, module.data
    encoder = data.encoder
    identity = {
        "base_model": module.base_model.source.public_name,
        "base_fingerprint": module.base_model.source.fingerprint,
        "dtype": module.base_model.dtype,
        "device": module.device.type,
        "precision": str(trainer.precision),
        **encoder.identity,
    }
    context = RetainContext(
        module.model,
        data.prepared,
        encoder,
        data.retain_cache,
        identity,
        data.seed,
        data.batches.eval_batch_size,
        trainer.precision_plugin.train_step_context,
    )
    sources = [one for one in module.retain if isinstance(one, RetainSource)]
    retained = [found for source in sources if (found := with_texts(source, context)).texts]
    penalty = RetainPenalty(retained, encoder.pad_id, data.batches.micro_batch_size) if retained else None
    directions = [one.held(context, begins=begins) for one in module.retain if isinstance(one, InputDirections)]
    return penalty, directions
