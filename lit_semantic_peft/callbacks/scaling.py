"""What callbacks share that multiply a trained adapter's change of the weights by a factor."""

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from typing_extensions import override

from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import TrainingCallback


class ScalesAdapter(TrainingCallback):
    """Replaces the trained ΔW by αΔW when training ends.

    LoRA's factors B are multiplied by α, so the adapter is an ordinary one. It is scaled before the last checkpoint is
    written, after the last validation. A training that goes on after that goes on from what was trained.

    Attributes:
        scale: α; None before training has ended.
    """

    def __init__(self) -> None:
        self._forget()

    @override
    def _forget(self) -> None:
        self.scale: float | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if self.scale is not None:
            TrainedFactors(pl_module.model).scale(1 / self.scale)
            self.scale = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if _ends(trainer):
            self.scale = self._scaled(trainer, pl_module)

    @abstractmethod
    def _scaled(self, trainer: Trainer, module: SemanticPeftModule) -> float:
        """Scales the adapter, and says by what."""

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


class TrainedFactors:
    """The parameters to which each LoRA layer's change of the model is proportional, as they were trained.

    Args:
        model: A PEFT model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._trained = [(factor, factor.detach().clone()) for factor in output_factors(model)]

    @torch.no_grad()
    def scale(self, scale: float) -> None:
        """Sets them to so many times what was trained.

        Args:
            scale: α.
        """
        for factor, value in self._trained:
            factor.copy_(value * scale)


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


def _ends(trainer: Trainer) -> bool:
    """Whether training ends with this epoch."""
    loop = trainer.fit_loop
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs:
        return True
    return bool(trainer.should_stop and loop._can_stop_early)
