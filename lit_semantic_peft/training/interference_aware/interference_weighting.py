"""Loss weights that follow the interference between the facts while they are trained."""

from typing import Any, get_args

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training.identity import TrainingCallback
from lit_semantic_peft.training.interference_aware.fact_sample import agreed_gradient_matrix, trained_sample
from lit_semantic_peft.training.interference_aware.progress_weights import (
    Objective,
    predicted_progress,
    progress_weights,
)
from lit_semantic_peft.training.module import SemanticPeftModule


class InterferenceWeighting(TrainingCallback):
    """Weighs facts so that the worst, or the mean, predicted progress of the kept facts is as large as can be.

    Every n optimizer steps the gradient matrix of a sample of the kept facts, in their own prompts whatever form is
    taught, is measured and its weights are solved for by `progress_weights`, around the weights of the data module's
    weighting. Those of `Online` are known within a
    step only: they multiply the result, and count as 1 here. The sample's sum of weights is kept. The sample rotates:
    of n facts none comes twice within ⌊n / k⌋ samples of k = `num_facts`. In between a fact keeps its last factor. The
    first n steps are plain: before training there is hardly any interference.

    Progress is first order, for plain descent; AdamW differs. `LossWeights` has the factors and keeps them in the
    checkpoint.

    Cost: every n steps about one forward and one backward pass of `num_facts` facts (the default, 64 facts every 25
    steps of 16 facts, is 16 % more) and the solver, about a second by default and up to ten for a smaller `beta` or
    more facts (`beta: 0` takes none), see `progress_weights`; memory as `agreed_gradient_matrix`.

    Logged metrics, each at the steps that solve anew:

    - `train/progress_worst_before`, `train/progress_worst`: the sample's smallest predicted progress under its weights
      so far and under the new ones, in units of what an average fact does for itself; below 0 a loss rises.
    - `train/progress_mean_before`, `train/progress_mean`: the same for the mean.

    Args:
        objective: `worst` or `mean`.
        beta: β ≥ 0: how expensive it is to leave the given weights, per nat of divergence from them.
        floor: Smallest factor on a fact's weight, in [0, 1].
        cap: Largest factor on a fact's weight, ≥ 1.
        every_n_steps: n ≥ 1.
        num_facts: Size of the sample, ≥ 2.

    Raises:
        InputError: If a setting is out of its range.

    Example:
        >>> InterferenceWeighting("mean", beta=2.0).every_n_steps
        25
    """

    def __init__(
        self,
        objective: Objective = "worst",
        beta: float = 1.0,
        floor: float = 0.25,
        cap: float = 4.0,
        every_n_steps: int = 25,
        num_facts: int = 64,
    ) -> None:
        if objective not in get_args(Objective):
            raise InputError(f"`objective` must be one of {', '.join(get_args(Objective))}, got {objective!r}")
        for name, number, low, high in (
            ("beta", beta, 0.0, float("inf")),
            ("floor", floor, 0.0, 1.0),
            ("cap", cap, 1.0, float("inf")),
        ):
            if not low <= number <= high:
                raise InputError(f"`{name}` must be in [{low:g}, {high:g}], got {number}")
        for name, value, least in (("every_n_steps", every_n_steps, 1), ("num_facts", num_facts, 2)):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        self.objective: Objective = objective
        self.beta = beta
        self.floor = floor
        self.cap = cap
        self.every_n_steps = every_n_steps
        self.num_facts = num_facts
        self._forget()

    @override
    def _forget(self) -> None:
        self._solved_at = 0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step > self._solved_at:
            assert isinstance(pl_module, SemanticPeftModule)
            self._solve(pl_module, number=step // self.every_n_steps - 1)
            self._solved_at = step

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"solved_at": self._solved_at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._solved_at = state_dict["solved_at"]

    def _solve(self, module: SemanticPeftModule, number: int) -> None:
        sample = np.array(trained_sample(module, self.num_facts, number))
        matrix = agreed_gradient_matrix(module, sample.tolist()).double().numpy()
        is_finite = np.isfinite(matrix.diagonal())
        sample, matrix = sample[is_finite], matrix[np.ix_(is_finite, is_finite)]
        if len(sample) < 2:
            return
        rows, weights = sample.tolist(), module.loss_weights
        given, before = weights.planned(rows), weights.before_online(rows)
        weight = progress_weights(
            matrix, given, objective=self.objective, beta=self.beta, floor=self.floor, cap=self.cap
        )
        # A fact without weight now may get one from the schedule before it is sampled again.
        weights.set_factor(rows, np.divide(weight, given, out=np.ones_like(given), where=given > 0))
        for suffix, of_sample in (("_before", before), ("", weight)):
            progress = predicted_progress(matrix, of_sample)
            module.log(f"train/progress_worst{suffix}", float(progress.min()), on_step=True, batch_size=1)
            module.log(f"train/progress_mean{suffix}", float(progress.mean()), on_step=True, batch_size=1)
