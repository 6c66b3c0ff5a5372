"""A second short pass over the facts that training has not taught."""

import logging
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.callbacks.recalled import recalled_texts
from lit_semantic_peft.data.second_pass import SecondPass
from lit_semantic_peft.data.situation import reload_every_epoch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import TrainingCallback

logger = logging.getLogger(__name__)


class Refine(TrainingCallback):
    """Teaches, in the last optimizer steps of a training, the facts that resist, and repeats the others.

    A fact resists if it is not recalled, teacher-forced, in its own prompt and in each of its stopping forms; the forms
    that are asked at the end decide nothing. Half of each of the last `num_steps` optimizer steps are facts that
    resist, the other half facts that do not, in rotation. A fact whose own prompt is not recalled is taught in that,
    every other one in its forms as before; what is held still is held as before.
    The schedule of the learning rate ends before these steps, over which the rate falls linearly to 0 from `rate` times
    the full one. They are an epoch of their own, and the epoch before them may be cut short. Where no fact resists,
    training ends without them. Cost beside the steps: one forward pass over these texts. Source: ours.

    Args:
        num_steps: Optimizer steps of the second pass, ≥ 1, the last ones of `trainer.max_steps`.
        rate: Share of the full learning rate at its first step, in (0, 1].

    Raises:
        InputError: If a setting is out of its range; before training, if it has no other steps.
    """

    def __init__(self, num_steps: int = 24, rate: float = 0.5) -> None:
        if num_steps < 1:
            raise InputError(f"`num_steps` of Refine must be at least 1, got {num_steps}")
        if not 0 < rate <= 1:
            raise InputError(f"`rate` of Refine must be in (0, 1], got {rate}")
        self.num_steps = num_steps
        self.rate = rate
        self._forget()

    @override
    def _forget(self) -> None:
        self.resisting: tuple[int, ...] | None = None
        self.own_prompts: frozenset[int] = frozenset()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        first_step = trainer.max_steps - self.num_steps
        if first_step < 1:
            raise InputError(
                f"`trainer.max_steps` is {trainer.max_steps}, of which the last {self.num_steps} are those of Refine: "
                "no step is left before them."
            )
        assert isinstance(pl_module, SemanticPeftModule)
        pl_module.data.second_pass = SecondPass(first_step, self.num_steps, self.rate)
        reload_every_epoch(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._plan(pl_module)  # of a checkpoint

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resisting == ():  # where training has ended before
            trainer.should_stop = True

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        second_pass = pl_module.data.second_pass
        if second_pass is None or trainer.global_step != second_pass.first_step:
            return
        self.resisting, self.own_prompts = _resisting(trainer, pl_module)
        self._plan(pl_module)
        num_trained = len(pl_module.data.prepared.trained_index(trainer.current_epoch))
        logger.info(
            "Facts that resist, of %d: %d; %s", num_trained, len(self.resisting),
            f"{self.num_steps} more optimizer steps on them" if self.resisting else "training ends",
        )  # fmt: skip
        if not self.resisting:
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"resisting": self.resisting, "own_prompts": sorted(self.own_prompts)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resisting, self.own_prompts = state_dict["resisting"], frozenset(state_dict.get("own_prompts", ()))

    def _plan(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        data = pl_module.data
        if self.resisting is not None and data.second_pass is not None:
            data.second_pass = replace(data.second_pass, resisting=self.resisting, own_prompts=self.own_prompts)


def _resisting(trainer: Trainer, module: SemanticPeftModule) -> tuple[tuple[int, ...], frozenset[int]]:
    """Indices of the facts that are not recalled in their own prompt and each stopping form. A collective.

    Returns:
        All of them; and those that are not recalled in their own prompt.
    """
    prepared = module.data.prepared
    texts_of = {row: {row, *prepared.forms.stopping[row]} for row in prepared.trained_index(trainer.current_epoch)}
    texts = sorted({text for texts in texts_of.values() for text in texts})
    is_recalled = recalled_texts(trainer, module, texts).tolist()
    resisting = tuple(row for row, texts in texts_of.items() if not all(is_recalled[text] for text in texts))
    return resisting, frozenset(row for row in resisting if not is_recalled[row])
