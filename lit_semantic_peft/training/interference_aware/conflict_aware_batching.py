"""Facts that conflict go to different optimizer steps, or to the same one."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.data import StepPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_cosine, is_conflict
from lit_semantic_peft.training.identity import TrainingCallback
from lit_semantic_peft.training.interference_aware.fact_sample import agreed_gradient_matrix, trained_sample
from lit_semantic_peft.training.module import SemanticPeftModule

Mode = Literal["apart", "together"]

_MAX_SWEEPS = 20


def conflict_steps(severity: np.ndarray, capacity: Sequence[int], mode: Mode) -> np.ndarray:
    """Which step each fact goes to, so that the conflicts within steps are as few, or as many, as can be found.

    The cost of a plan is Σ severity over the pairs that share a step. A greedy start (`apart`: the fact with the most
    conflicts first, each to the step where it meets the fewest; `together`: step by step, the fact that conflicts most
    with those in it) is improved by exchanging two facts, or moving one to a free place, until no exchange helps.
    Finding the best plan is NP-hard (graph colouring with capacities); this is a local optimum. Our reading. Cost:
    O(k (k + steps)) a sweep over k facts, at most 20 sweeps, and no pass over the model.

    Args:
        severity: How much a pair conflicts, float `(k, k)`, ≥ 0, symmetric, 0 on the diagonal.
        capacity: Facts that each step takes; k or more in all.
        mode: `apart` or `together`.

    Returns:
        int64 `(k,)`, number of each fact's step.

    Example:
        >>> pairs = np.kron(np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]]))  # 0 against 1, 2 against 3
        >>> conflict_steps(pairs, [2, 2], "apart").tolist(), conflict_steps(pairs, [2, 2], "together").tolist()
        ([0, 1, 0, 1], [0, 0, 1, 1])
    """
    severity = np.asarray(severity, dtype=np.float64)
    free = np.array(capacity, dtype=np.int64)
    if free.sum() < len(severity):
        raise ValueError(f"`capacity` must be at least {len(severity)} in all, got {free.sum()}")
    step = (_greedy_apart if mode == "apart" else _greedy_together)(severity, free)
    sign = 1.0 if mode == "apart" else -1.0
    met = sign * severity @ np.eye(len(free))[step]  # what each fact would cost in each step
    facts = np.arange(len(severity))
    for _ in range(_MAX_SWEEPS):
        has_improved = False
        for fact in np.flatnonzero(severity.any(axis=1)).tolist():
            here = int(step[fact])
            exchanged = met[fact, step] + met[:, here] - 2 * sign * severity[fact] - met[fact, here] - met[facts, step]
            exchanged[step == here] = 0.0
            moved = np.where(free > 0, met[fact] - met[fact, here], np.inf)
            moved[here] = 0.0
            other, there = int(exchanged.argmin()), int(moved.argmin())
            if min(exchanged[other], moved[there]) > -1e-12:
                continue
            has_improved = True
            swaps = exchanged[other] <= moved[there]
            target = int(step[other]) if swaps else there
            moves = [(fact, here, target)] + ([(other, target, here)] if swaps else [])
            for one, old, new in moves:
                met[:, old] -= sign * severity[:, one]
                met[:, new] += sign * severity[:, one]
                free[old] += 1
                free[new] -= 1
                step[one] = new
        if not has_improved:
            break
    return step


def _greedy_apart(severity: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Takes places of `free`."""
    step = np.zeros(len(severity), dtype=np.int64)
    met = np.zeros((len(severity), len(free)))
    for fact in np.argsort(-severity.sum(axis=1), kind="stable"):
        cost = np.where(free > 0, met[fact], np.inf)
        step[fact] = max(np.flatnonzero(cost == cost.min()), key=lambda one: (free[one], -one))
        free[step[fact]] -= 1
        met[:, step[fact]] += severity[fact]
    return step


def _greedy_together(severity: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Takes places of `free`."""
    step = np.full(len(severity), -1, dtype=np.int64)
    degree = severity.sum(axis=1)
    for number in range(len(free)):
        met = np.zeros(len(severity))
        while free[number] and (step < 0).any():
            left = np.flatnonzero(step < 0)
            fact = left[np.lexsort((-degree[left], -met[left]))[0]]
            step[fact] = number
            free[number] -= 1
            met += severity[fact]
    return step


def arranged(
    rows: list[int], facts_per_step: int, *, sample: Sequence[int], severity: np.ndarray, mode: Mode
) -> list[list[int]]:
    """The steps of an epoch: `conflict_steps` for the facts with known conflicts, the others fill the places left.

    Args:
        rows: Fact indices in the epoch's random order, which decides between equals.
        facts_per_step: Facts of each step but the last.
        sample: Fact indices with known conflicts.
        severity: Of these, see `conflict_steps`.
        mode: `apart` or `together`.

    Returns:
        The fact indices of each step; only the last may be smaller.
    """
    whole, rest = divmod(len(rows), facts_per_step)
    steps: list[list[int]] = [[] for _ in range(whole + (rest > 0))]
    capacity = [facts_per_step] * whole + [rest] * (rest > 0)
    position = {row: number for number, row in enumerate(sample)}
    known = [row for row in rows if row in position]
    at = [position[row] for row in known]
    for row, number in zip(known, conflict_steps(severity[np.ix_(at, at)], capacity, mode), strict=True):
        steps[number].append(row)
    others = iter([row for row in rows if row not in position])
    for step, size in zip(steps, capacity, strict=True):
        step.extend(next(others) for _ in range(size - len(step)))
    return steps


class ConflictAwareBatching(TrainingCallback):
    """Plans each epoch's optimizer steps so that facts that conflict are apart, or together.

    Apart, no step has to serve two facts that pull against each other, but the steps undo each other one by one;
    together, a step finds a compromise, but gives each less. Which helps must be measured, so both are offered. The
    gradient matrix of a sample of the kept facts, in their own prompts whatever form is taught, is measured before an
    epoch; a pair conflicts where its cosine is below −threshold, by that much. The first epoch is plain: before
    training there is hardly any conflict. Facts of similar length no longer share a step, so there is more padding;
    `bucket_steps` has no effect.

    Cost: each n-th epoch about one forward and one backward pass of `num_facts` facts, and the plan; memory as
    `agreed_gradient_matrix`.

    Logged metrics:

    - `train/conflicts_within_steps`: share of the sample's conflicts, by severity, whose two facts share a step,
      [0, 1], each epoch with known conflicts.

    Args:
        mode: `apart` or `together`.
        num_facts: Size of the sample, another one at each measurement; the others count as without conflict.
        every_n_epochs: n ≥ 1, epochs between two measurements.
        threshold: τ in [0, 1).

    Raises:
        InputError: If a setting is out of its range; before training, if the data module mixes strata.

    Example:
        >>> ConflictAwareBatching("together").num_facts
        256
    """

    def __init__(
        self, mode: Mode = "apart", num_facts: int = 256, every_n_epochs: int = 1, threshold: float = 0.05
    ) -> None:
        if mode not in get_args(Mode):
            raise InputError(f"`mode` must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        for name, value, least in (("num_facts", num_facts, 2), ("every_n_epochs", every_n_epochs, 1)):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        if not 0 <= threshold < 1:
            raise InputError(f"`threshold` must be in [0, 1), got {threshold}")
        self.mode: Mode = mode
        self.num_facts = num_facts
        self.every_n_epochs = every_n_epochs
        self.threshold = threshold
        self._forget()

    @override
    def _forget(self) -> None:
        self.sample: list[int] = []
        self.severity = torch.zeros(0, 0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.sample:  # of a checkpoint
            self._arrange(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The epoch's steps are planned at the first micro-batch, which is after this.
        epoch = trainer.current_epoch
        if epoch and epoch % self.every_n_epochs == 0:
            assert isinstance(pl_module, SemanticPeftModule)
            self.sample = trained_sample(pl_module, self.num_facts, epoch // self.every_n_epochs - 1)
            cosine = gradient_cosine(agreed_gradient_matrix(pl_module, self.sample))
            self.severity = torch.where(is_conflict(cosine, self.threshold), -cosine, 0.0)
        if self.sample:
            plan = self._arrange(trainer)
            pl_module.log("train/conflicts_within_steps", self._share_within(plan.steps(epoch)), batch_size=1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"sample": self.sample, "severity": self.severity}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sample, self.severity = list(state_dict["sample"]), state_dict["severity"]

    def _arrange(self, trainer: Trainer) -> StepPlan:
        assert trainer.train_dataloader is not None
        plan = trainer.train_dataloader.sampler
        assert isinstance(plan, StepPlan)
        plan.arrange = partial(arranged, sample=self.sample, severity=self.severity.numpy(), mode=self.mode)
        return plan

    def _share_within(self, steps: list[list[int]]) -> float:
        """Share of the severity of all pairs that is within steps; 0 where no pair conflicts."""
        step_of = {row: number for number, step in enumerate(steps) for row in step}
        step = torch.tensor([step_of[row] for row in self.sample])
        within = float(self.severity[step[:, None] == step[None, :]].sum())
        total = float(self.severity.sum())
        return within / total if total > 0 else 0.0
