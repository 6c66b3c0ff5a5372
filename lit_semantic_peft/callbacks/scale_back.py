"""Scales a trained adapter back towards the base model, as far as its facts stay recalled."""

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from typing_extensions import override

from lit_semantic_peft.callbacks.recalled import recalled_texts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import TrainingCallback

logger = logging.getLogger(__name__)

_ROUNDING = 1e-9  # of α


class ScaleBack(TrainingCallback):
    """Replaces the trained ΔW by αΔW, with the least α at which the facts stay recalled.

    When training ends, the facts are asked, teacher-forced, in their own prompts, their taught forms and their stopping
    forms; the forms that are asked at the end decide nothing. α falls from 1 in steps of `step` until an own prompt
    that is recalled at 1 is not any more, or more than `tolerance` of all texts that are recalled at 1, or until
    `lowest`. What unrelated text loses falls about as α², while most facts stay recalled, since they were trained
    beyond the point at which their target wins. LoRA's factors B are multiplied by α, so the adapter is an ordinary
    one. It is scaled before the last checkpoint is written, after the last validation. Cost: a forward pass over these
    texts for each α. Source: our reading of interpolating between the weights before and after fine-tuning (WiSE-FT,
    arXiv 2109.01903).

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
        self._forget()

    @override
    def _forget(self) -> None:
        self.scale: float | None = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if not _ends(trainer):
            return
        prepared = pl_module.data.prepared
        forms = prepared.forms
        rows = prepared.trained_index(trainer.current_epoch)
        texts = sorted({text for row in rows for text in (*forms.texts_of(row), *forms.stopping[row])})
        before = recalled_texts(trainer, pl_module, texts)
        most = self.tolerance * int(before.sum())
        trained = [(factor, factor.detach().clone()) for factor in output_factors(pl_module.model)]
        self.scale, tried = 1.0, 1.0 - self.step
        num_lost = 0
        while before.any() and tried >= self.lowest - _ROUNDING:
            _scale(trained, tried)
            lost = before & ~recalled_texts(trainer, pl_module, texts)
            if lost[rows].any() or lost.sum() > most:
                break
            self.scale, num_lost, tried = tried, int(lost.sum()), tried - self.step
        _scale(trained, self.scale)
        logger.info(
            "The adapter is scaled to %.2f of what was trained; of %d taught texts that are recalled this loses %d, "
            "and no fact's own prompt", self.scale, int(before.sum()), num_lost,
        )  # fmt: skip

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


def output_factors(model: nn.Module) -> list[Tensor]:
    """The parameters to which each LoRA layer's change of the model is proportional: B, and its bias.

    Args:
        model: A PEFT model.
    """
    name = model.active_adapter
    return [
        parameter
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for factors in (layer.lora_B, layer.lora_embedding_B)
        if name in factors
        for parameter in ([factors[name]] if isinstance(factors[name], Tensor) else factors[name].parameters())
    ]


@torch.no_grad()
def _scale(trained: list[tuple[Tensor, Tensor]], scale: float) -> None:
    for factor, value in trained:
        factor.copy_(value * scale)


def _ends(trainer: Trainer) -> bool:
    """Whether training ends with this epoch."""
    loop = trainer.fit_loop
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs:
        return True
    return bool(trainer.should_stop and loop._can_stop_early)
