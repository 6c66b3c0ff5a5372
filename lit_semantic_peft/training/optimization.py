"""How long a training is, and how its learning rate moves."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig
from torch.optim import Optimizer
from transformers import get_scheduler

from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.data.second_pass import SecondPass
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import traits_of

Schedule = Literal["constant", "linear", "cosine"]


def default_optimizer(peft_config: PeftConfig) -> OptimizerCallable:
    """AdamW without weight decay, at the learning rate of the adapter's type.

    Args:
        peft_config: The adapter's configuration.
    """
    return partial(torch.optim.AdamW, lr=traits_of(peft_config).learning_rate, weight_decay=0.0)


def num_optimizer_steps(trainer: Trainer, prepared: PreparedFacts) -> float:
    """Optimizer steps of the whole training; infinite where neither `max_epochs` nor `max_steps` ends it.

    Lightning assumes that all epochs are as long as the current one, which is wrong with deferred facts.

    Args:
        trainer: The trainer.
        prepared: The facts.
    """
    estimate = trainer.estimated_stepping_batches  # loads the training data
    if prepared.weights.deferred_from_epoch is None or trainer.max_epochs in (None, -1):
        return estimate
    assert trainer.train_dataloader is not None
    num_steps: int = trainer.train_dataloader.sampler.steps_before(trainer.max_epochs)
    return num_steps if trainer.max_steps == -1 else min(num_steps, trainer.max_steps)


def checked_optimizer(optimizer: OptimizerCallable | None, peft_config: PeftConfig) -> OptimizerCallable:
    """The optimizer, unless it cannot be made, or its learning rate trains nothing.

    Args:
        optimizer: Makes an optimizer of parameters; `default_optimizer` where None.
        peft_config: The adapter's configuration.

    Raises:
        InputError: With the optimizer's own words, if it takes no gradients of an adapter, or if its learning rate is
            not a finite number above 0, or another of its numbers is not finite.
    """
    optimizer = optimizer or default_optimizer(peft_config)
    try:
        made = optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
    except (TypeError, ValueError) as error:
        raise InputError(f"`optimizer`: {error}") from error
    if isinstance(made, torch.optim.SparseAdam):
        raise InputError("`optimizer`: SparseAdam takes sparse gradients, but an adapter's are dense. Choose AdamW.")
    rates = [float(group["lr"]) for group in made.param_groups if "lr" in group]
    if not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"`optimizer.lr` must be a finite number above 0, got {rates[0]}")
    for name, value in made.defaults.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"`optimizer.{name}` must be a finite number, got {value}")
    return optimizer


@dataclass(frozen=True)
class Cooldown:
    """A linear decay of the learning rate to 0, which would be reached one step after the last, ahead of the schedule.

    Attributes:
        first_step: Number of its first optimizer step, which still has the rate of the schedule.
        num_steps: How many it has, ≥ 1.
    """

    first_step: int
    num_steps: int


def with_schedule(
    optimizer: Optimizer,
    schedule: Schedule,
    warmup_ratio: float,
    num_steps: float,
    second_pass: SecondPass | None = None,
    cooldown: Callable[[], Cooldown | None] = lambda: None,
) -> OptimizerLRScheduler:
    """An optimizer and its learning rate over all optimizer steps, as Lightning takes them.

    Args:
        optimizer: The optimizer.
        schedule: What the learning rate does after warm-up.
        warmup_ratio: Share of the steps over which it rises, in [0, 1).
        num_steps: Optimizer steps of the training; infinite for a constant rate without warm-up.
        second_pass: The last of these steps, which have a rate of their own; the schedule is over the others.
        cooldown: Asked in each step whether the training ends ahead of time.
    """
    num_scheduled = num_steps - (second_pass.num_steps if second_pass else 0)
    is_endless = math.isinf(num_scheduled)
    scheduler = get_scheduler(
        "constant_with_warmup" if schedule == "constant" or is_endless else schedule,
        optimizer,
        num_warmup_steps=0 if is_endless else round(warmup_ratio * num_scheduled),
        num_training_steps=None if is_endless else int(num_scheduled),
    )
    planned = scheduler.lr_lambdas[0]  # the same for all groups of parameters

    def factor(step: int) -> float:
        if second_pass is not None and step >= second_pass.first_step:
            return second_pass.rate * _left(step - second_pass.first_step, second_pass.num_steps)
        ending = cooldown()
        if ending is not None and step >= ending.first_step:
            return float(planned(ending.first_step)) * _left(step - ending.first_step, ending.num_steps)
        return float(planned(step))

    scheduler.lr_lambdas = [factor] * len(optimizer.param_groups)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _left(num_done: int, num_steps: int) -> float:
    """The share of some steps that is left, which is 0 after the last of them."""
    return max(0.0, 1 - num_done / num_steps)


def rate_in_words(optimizer: Optimizer, peft_config: PeftConfig) -> str:
    """The full learning rate, and the default for the adapter's type where another was given.

    Args:
        optimizer: The optimizer, with or without a schedule.
        peft_config: The adapter's configuration.
    """
    group, default = optimizer.param_groups[0], traits_of(peft_config).learning_rate
    rate = float(group.get("initial_lr", group["lr"]))
    remark = "" if rate == default else f"; AdamW's default for {type(peft_config).__name__} is {default:g}"
    return f"Learning rate: {rate:g}{remark}"
