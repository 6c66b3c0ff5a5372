"""Which texts a model in training recalls."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_semantic_peft.data.loaders import text_loader
from lit_semantic_peft.metrics import PerFactMean
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.training import SemanticPeftModule


def recalled_texts(trainer: Trainer, module: SemanticPeftModule, texts: Sequence[int]) -> Tensor:
    """Asks texts teacher-forced, without a trace in the training. A collective.

    Args:
        trainer: In a training.
        module: Its module.
        texts: Numbers of texts in `prepared.forms`.

    Returns:
        Whether every target token of a text wins, bool `(number of all texts,)`; false for those that are not asked.
    """
    data = module.data
    batches = text_loader(
        data.prepared, data.encoder.pad_id, texts, data.batches.eval_batch_size,
        world_size=trainer.world_size, rank=trainer.global_rank,
    )  # fmt: skip
    recalled = PerFactMean(len(data.prepared.forms.texts)).to(module.device)
    with undisturbed(module.model), torch.no_grad(), trainer.precision_plugin.val_step_context():
        for batch in batches:
            batch = batch.to(module.device)
            recalled.update(score_targets(module.model, batch).is_recalled, batch.text_index)
    means: Tensor = recalled.compute()
    return means == 1
