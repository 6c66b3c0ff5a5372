"""Weightings built from other weightings: tempered, with a floor, or scheduled over training."""

import math

from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.weightings import Proximity, Remoteness, Weighting


class Tempered(Weighting):
    """Another weighting, flattened or sharpened, with a floor: w = f + (1 − f)·v^(1/T), v its raw weight.

    Range of the raw weight: [f, 1] if v is in [0, 1]. This holds for all of ours except `MediumConfidence`, whose peak
    may be above 1. Cost: no pass. Source: ours.

    Args:
        weighting: The weighting to modify.
        temperature: T > 0; above 1 weights become more equal, below 1 less equal.
        floor: f in [0, 1): the smallest raw weight, where the largest is 1.

    Raises:
        InputError: If a setting is out of its range, or `weighting` is `Online` or `Scheduled`: put this inside it.

    Example:
        >>> import torch
        >>> Tempered(Proximity(), temperature=0.5, floor=0.5).raw(torch.tensor([0.0, 1.0, 2.0])).tolist()
        [1.0, 0.625, 0.5]
    """

    def __init__(self, weighting: Weighting, temperature: float = 1.0, floor: float = 0.0) -> None:
        require_plain("Tempered", weighting)
        if not 0 < temperature < math.inf:
            raise InputError(f"`temperature` must be a finite number above 0, got {temperature!r}; 1 changes nothing.")
        if not 0 <= floor < 1:
            raise InputError(f"`floor` must be in [0, 1), got {floor!r}. For no weighting use Uniform.")
        self.weighting = weighting
        self.temperature = temperature
        self.floor = floor
        self.needs_nll = weighting.needs_nll
        self.needs_all_facts = weighting.needs_all_facts

    @override
    def raw(self, distance: Tensor) -> Tensor:
        return self.floor + (1.0 - self.floor) * self.weighting.raw(distance) ** (1.0 / self.temperature)


class Scheduled(Weighting):
    """Interpolates from one weighting to another over training; by default from near facts to far ones.

    w = (1 − t)·first + t·last, where t is the completed share of training, from 0 at the first step to 1 at the last.
    Both have mean 1 over the kept facts, so the mean stays 1. Cost: no pass. Source: ours, after curriculum learning
    (Bengio et al. 2009).

    Args:
        first: The weighting at the start; None: `Proximity`.
        last: The weighting at the end; None: `Remoteness`.

    Raises:
        InputError: If one of them is itself `Online` or `Scheduled`.

    Example:
        >>> [type(one).__name__ for one in Scheduled().start_and_end]
        ['Proximity', 'Remoteness']
    """

    def __init__(self, first: Weighting | None = None, last: Weighting | None = None) -> None:
        self.first = first or Proximity()
        self.last = last or Remoteness()
        require_plain("Scheduled", self.first)
        require_plain("Scheduled", self.last)

    @property
    @override
    def start_and_end(self) -> tuple[Weighting, Weighting]:
        return self.first, self.last

    @override
    def raw(self, distance: Tensor) -> Tensor:
        """A schedule has no weight of its own.

        Raises:
            TypeError: Always. Use `start_and_end`.
        """
        raise TypeError("Scheduled has no raw weight of its own; use those of its `start_and_end`")


def require_plain(outer: str, weighting: Weighting) -> None:
    """Requires a weighting that does not depend on the training step.

    Args:
        outer: Name of the class that wraps it.
        weighting: The wrapped weighting.

    Raises:
        InputError: If it is not a plain function of the distance.
    """
    if weighting.start_and_end != (weighting, weighting) or weighting.is_online:
        name = type(weighting).__name__
        raise InputError(f"`weighting` {name} cannot be used inside {outer}; put {outer} inside {name}.")
