"""Whether the outputs of the frozen layers are kept during a training."""

import logging

import numpy as np
from peft import PeftModel

from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.models import FrozenLayers, frozen_layers_obstacle

logger = logging.getLogger(__name__)


def reused_layers(
    model: PeftModel, prepared: PreparedFacts, reuse: bool | None, memory_mb: int, is_sharded: bool
) -> FrozenLayers | None:
    """The frozen layers whose outputs a training keeps; None for none.

    Args:
        model: The model with its adapter.
        prepared: The facts.
        reuse: None: where the model allows it and the outputs fit into memory. True: always.
        memory_mb: Most memory for them in each process, in MB (10⁶ bytes).
        is_sharded: Whether the strategy shards the base model.

    Raises:
        InputError: If `reuse` is True and the model does not allow it.
    """
    # Each rank would need the others' shards at other times: their facts differ.
    if reuse is False or is_sharded or (reuse is None and frozen_layers_obstacle(model)):
        return None
    texts = [text for row in np.flatnonzero(prepared.is_trained).tolist() for text in prepared.forms.texts_of(row)]
    num_tokens = sum(len(prepared.forms.texts[text]) for text in texts)
    frozen = FrozenLayers(model, num_tokens, memory_mb)
    if reuse is None and not frozen.fits_in_memory:
        return None
    logger.info("The %d lowest layers run once for each text, not in every epoch", frozen.num_layers)
    return frozen
