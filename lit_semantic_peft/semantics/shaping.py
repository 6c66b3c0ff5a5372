"""Weightings made of weightings: milder, never below a floor, or moving over training."""

import math

from torch import Tensor

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.weightings import Proximity, Remoteness, Weighting


class Tempered(Weighting):
    """Another weighting, milder or sharper, and never below a floor: w = f + (1 − f)·v^(1/T), v its raw weight.

    Range of the raw weight: [f, 1] where v is in [0, 1], as all of ours but `MediumConfidence` are, whose peak is above
    1. Cost: no pass. Source: ours.

    Args:
        weighting: The weighting to change.
        temperature: T > 0; above 1 weights come closer together, below 1 they move apart.
        floor: f in [0, 1): the least raw weight, beside a largest of 1.

    Raises:
        InputError: If a setting is out of its range, or `weighting` is an `Online` or `Scheduled` one: put this inside.

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

    def raw(self, distance: Tensor) -> Tensor:
        """See `Weighting.raw`."""
        return self.floor + (1.0 - self.floor) * self.weighting.raw(distance) ** (1.0 / self.temperature)


class Scheduled(Weighting):
    """From one weighting to another over training; by default from the near facts to the far ones.

    With t the share of training that is done, from 0 at the first step to 1 at the last: w = (1 − t)·first + t·last,
    both with mean 1 over the kept facts, so the mean stays 1. Cost: no pass. Source: ours, after curriculum learning
    (Bengio et al. 2009).

    Args:
        first: The weighting at the start; `Proximity` where None.
        last: The weighting at the end; `Remoteness` where None.

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
    def start_and_end(self) -> tuple[Weighting, Weighting]:
        """See `Weighting.start_and_end`."""
        return self.first, self.last

    def raw(self, distance: Tensor) -> Tensor:
        """A schedule has no weight of its own.

        Raises:
            TypeError: Always: ask its `ends`.
        """
        raise TypeError("Scheduled has no raw weight of its own; ask its ends")


def require_plain(outer: str, weighting: Weighting) -> None:
    """Refuses a weighting that depends on the training step inside one that does not expect it.

    Args:
        outer: Name of the class that wraps it.
        weighting: What it wraps.

    Raises:
        InputError: If it is not a plain function of the distance.
    """
    if weighting.start_and_end != (weighting, weighting) or hasattr(weighting, "current"):
        name = type(weighting).__name__
        raise InputError(f"`weighting` {name} cannot stand inside {outer}; put {outer} inside {name}.")
