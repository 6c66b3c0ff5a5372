"""Scales a trained adapter back towards the base model, as far as its facts stay recalled."""

import logging

from lightning.pytorch import Trainer
from typing_extensions import override

from lit_semantic_peft.callbacks.recalled import recalled_texts
from lit_semantic_peft.callbacks.scaling import ScalesAdapter, TrainedFactors
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)

_ROUNDING = 1e-9  # of α


class ScaleBack(ScalesAdapter):
    """Replaces the trained ΔW by αΔW, with the least α at which the facts stay recalled.

    When training ends, the facts are asked, teacher-forced, in their own prompts, their taught forms and their stopping
    forms; the forms that are asked at the end decide nothing. α falls from 1 in steps of `step` until an own prompt
    that is recalled at 1 is not any more, or more than `tolerance` of all texts that are recalled at 1, or until
    `lowest`. What unrelated text loses falls about as α², while most facts stay recalled, since they were trained
    beyond the point at which their target wins. Cost: a forward pass over these texts for each α. Source: our reading
    of interpolating between the weights before and after fine-tuning (WiSE-FT, arXiv 2109.01903).

    Args:
        tolerance: Share of the recalled texts that may be lost, own prompts aside, in [0, 1).
        lowest: Least α, in (0, 1).
        step: Between two α, in (0, 1).

    Raises:
        InputError: If a setting is out of its range; before a training, if the adapter is not LoRA, or is DoRA.
    """

    def __init__(self, tolerance: float = 0.01, lowest: float = 0.5, step: float = 0.05) -> None:
        if not 0 <= tolerance < 1:
            raise InputError(f"`tolerance` of ScaleBack must be in [0, 1), got {tolerance}")
        for name, value in (("lowest", lowest), ("step", step)):
            if not 0 < value < 1:
                raise InputError(f"`{name}` of ScaleBack must be in (0, 1), got {value}")
        self.tolerance = tolerance
        self.lowest = lowest
        self.step = step
        super().__init__()

    @override
    def _scaled(self, trainer: Trainer, module: SemanticPeftModule) -> float:
        prepared = module.data.prepared
        forms = prepared.forms
        rows = prepared.trained_index(trainer.current_epoch)
        texts = sorted({text for row in rows for text in (*forms.texts_of(row), *forms.stopping[row])})
        before = recalled_texts(trainer, module, texts)
        most = self.tolerance * int(before.sum())
        trained = TrainedFactors(module.model)
        scale, tried = 1.0, 1.0 - self.step
        num_lost = 0
        while before.any() and tried >= self.lowest - _ROUNDING:
            trained.scale(tried)
            lost = before & ~recalled_texts(trainer, module, texts)
            if lost[rows].any() or lost.sum() > most:
                break
            scale, num_lost, tried = tried, int(lost.sum()), tried - self.step
        trained.scale(scale)
        logger.info(
            "The adapter is scaled to %.2f of what was trained; of %d taught texts that are recalled this loses %d, "
            "and no fact's own prompt", scale, int(before.sum()), num_lost,
        )  # fmt: skip
        return scale
