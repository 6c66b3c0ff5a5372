"""Scales a trained adapter up, beyond what was trained."""

import logging
import math

from lightning.pytorch import Trainer
from typing_extensions import override

from lit_semantic_peft.callbacks.scaling import ScalesAdapter, TrainedFactors
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)


class Extrapolate(ScalesAdapter):
    """Replaces the trained ΔW by αΔW with a given α > 1 when training ends.

    Where other text is held still while facts are taught, what is learned is narrow: wordings unlike the taught ones
    move the model in the right direction, but not far enough. α moves it farther: the lead of an answer grows about as
    α, what unrelated text loses about as α². Cost: none, in training and after. Source: our reading of extrapolating
    from the weights before training through those after it (ExPO, arXiv 2404.16792; task vectors, arXiv 2212.04089).

    Args:
        factor: α, at least 1.

    Raises:
        InputError: If `factor` is out of its range; before a training, if the adapter is not LoRA, or is DoRA.
    """

    def __init__(self, factor: float) -> None:
        if not (math.isfinite(factor) and factor >= 1):
            raise InputError(f"`factor` of Extrapolate must be at least 1, got {factor}; `ScaleBack` scales down")
        self.factor = factor
        super().__init__()

    @override
    def _scaled(self, trainer: Trainer, module: SemanticPeftModule) -> float:
        TrainedFactors(module.model).scale(self.factor)
        logger.info("The adapter is scaled to %.2f of what was trained", self.factor)
        return self.factor
