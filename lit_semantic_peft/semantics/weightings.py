"""Loss weight of each fact: a function of its distance, normalised to mean 1 over the kept facts.

Weightings are static unless wrapped in `Online`: they use what scoring has measured and need no further pass over the
model. They compute in torch, so that the same formula works for a table and for a training step.
"""

import logging
import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.arguments import written
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.distances import Distance, TargetPass
from lit_semantic_peft.semantics.table import FloatArray, ScoredFacts

logger = logging.getLogger(__name__)

MAX_DISTANCE = 2.0
"""Upper bound of a cosine distance; the lower bound is 0."""

_ROUNDING = 1e-6  # a cosine distance in float32 may leave [0, 2] by this much


class Weighting(ABC):
    """A function from distance to an unnormalised loss weight."""

    needs_nll: bool = False
    """Whether `raw` takes mean negative log-likelihoods (nats per token, ≥ 0) instead of distances."""

    is_online: bool = False
    """Whether the weights come from the logits of the training step itself, by `current`."""

    needs_all_facts: bool = False
    """Whether a fact's raw weight depends on which other facts `raw` is given."""

    def __repr__(self) -> str:
        return written(self)

    @property
    def start_and_end(self) -> "tuple[Weighting, Weighting]":
        """The weightings at the start and at the end of training. In between, weights are interpolated linearly."""
        return self, self

    def prepare(self, distance: Distance, base_distance: FloatArray) -> None:  # noqa: B027
        """Is told what is measured, once the kept facts are known; a function of one fact's distance needs nothing.

        Args:
            distance: The configured distance.
            base_distance: The kept facts' distances under the base model, float64 `(n,)`.

        Raises:
            InputError: If the weighting cannot be had with this distance.
        """

    @abstractmethod
    def raw(self, distance: Tensor) -> Tensor:
        """The weight before normalisation.

        Args:
            distance: float `(n,)`, in [0, 2]; with `needs_nll` the mean negative log-likelihood instead.

        Returns:
            float `(n,)`, finite and ≥ 0.
        """

    def current(self, distance: Distance, outputs: TargetPass) -> Tensor:
        """The weights of a step's facts, of a weighting that `is_online`.

        Args:
            distance: The distance to measure.
            outputs: The step's forward pass at the target tokens, detached.

        Returns:
            float32 `(B,)`, ≥ 0.

        Raises:
            TypeError: If the weighting is not online.
        """
        raise TypeError(f"{type(self).__name__} is not online")


class Uniform(Weighting):
    """The same weight for every fact: w = 1.

    Range of the raw weight: 1. Cost: no pass. The baseline for every other weighting.

    Example:
        >>> Uniform().raw(torch.tensor([0.0, 2.0])).tolist()
        [1.0, 1.0]
    """

    @override
    def raw(self, distance: Tensor) -> Tensor:
        return torch.ones_like(distance)


class Proximity(Weighting):
    """Larger weights for near facts: w = (1 − d/2)^γ.

    Range of the raw weight: [0, 1]; 1 at distance 0, 0 at distance 2 (γ > 0). Cost: no pass. Source: our reading of
    Wang & Li 2024.

    Args:
        gamma: γ ≥ 0; 0 is uniform.

    Example:
        >>> Proximity(gamma=2.0).raw(torch.tensor([0.0, 1.0, 2.0])).tolist()
        [1.0, 0.25, 0.0]
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = _require_gamma(gamma)

    @override
    def raw(self, distance: Tensor) -> Tensor:
        return (1.0 - distance / MAX_DISTANCE) ** self.gamma


class Remoteness(Weighting):
    """Larger weights for far facts: w = (d/2)^γ.

    Range of the raw weight: [0, 1]; 0 at distance 0 (γ > 0), 1 at distance 2. Cost: no pass. Source: our reading of
    Wang & Li 2024.

    Args:
        gamma: γ ≥ 0; 0 is uniform.

    Example:
        >>> Remoteness().raw(torch.tensor([0.0, 1.0, 2.0])).tolist()
        [0.0, 0.5, 1.0]
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = _require_gamma(gamma)

    @override
    def raw(self, distance: Tensor) -> Tensor:
        return (distance / MAX_DISTANCE) ** self.gamma


class Band(Weighting):
    """Largest weights for facts at a medium distance: w = exp(−(d − c)² / (2 b²)).

    Both too near and too far facts are said to be learned poorly. Range of the raw weight: [0, 1] (0 only by
    underflow); 1 at the centre c, 0.61 one width b away. Cost: no pass. Source: our reading of Wang & Li 2024.

    Args:
        center: c, the distance with the largest weight, in [0, 2].
        width: b > 0, in the unit of the distance.

    Example:
        >>> Band(center=1.0, width=0.5).raw(torch.tensor([0.5, 1.0, 1.5])).round(decimals=2).tolist()
        [0.6100000143051147, 1.0, 0.6100000143051147]
    """

    def __init__(self, center: float = 1.0, width: float = 0.5) -> None:
        if not 0 <= center <= MAX_DISTANCE:
            raise InputError(f"`center` must be a distance in [0, 2], got {center!r}.")
        if not (math.isfinite(width) and width > 0):
            raise InputError(f"`width` must be a finite number above 0, got {width!r}. For no weighting use Uniform.")
        self.center = center
        self.width = width

    @override
    def raw(self, distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((distance - self.center) / self.width) ** 2)


def loss_weights(weighting: Weighting, distance: FloatArray, *, is_rank_based: bool = False) -> FloatArray:
    """Loss weights of the kept facts, with mean 1.

    Args:
        weighting: The function of the distance.
        distance: float64 `(n,)` of the kept facts, finite; clipped to [0, 2]. With `needs_nll` their mean negative
            log-likelihoods instead, ≥ 0.
        is_rank_based: Whether to use only the order of the distances, for a distance that is not in [0, 2] (surprisal,
            in nats per token). Ranks, averaged over ties, are spread evenly over [0, 2]; a single fact gets 1.

    Returns:
        float64 `(n,)`, ≥ 0, mean 1. All ones, with a logged warning, if every raw weight is zero.

    Raises:
        InputError: If a distance is not finite, or the weighting gives a negative or infinite weight.

    Example:
        >>> loss_weights(Proximity(), np.array([0.0, 1.0, 2.0])).tolist()
        [2.0, 1.0, 0.0]
        >>> loss_weights(Remoteness(), np.array([3.0, 9.0, 4.0]), is_rank_based=True).tolist()
        [0.0, 2.0, 1.0]
    """
    distance = np.asarray(distance, dtype=np.float64)
    if distance.ndim != 1:
        raise ValueError(f"`distance` must have the shape (n,), got {distance.shape}")
    num_bad = int((~np.isfinite(distance)).sum())
    if num_bad:
        raise InputError(
            f"`distance` must be a finite number for every fact, got {num_bad} of {len(distance)} that are not. "
            "Score these facts again, or take them out of the file."
        )
    if not len(distance):
        return np.ones(0)
    name = type(weighting).__name__
    if weighting.needs_nll:
        limit = math.inf
    elif is_rank_based:
        limit, distance = MAX_DISTANCE, _spread_ranks(distance)
    else:
        limit = MAX_DISTANCE
        num_outside = int(((distance < -_ROUNDING) | (distance > MAX_DISTANCE + _ROUNDING)).sum())
        if num_outside and not isinstance(weighting, Uniform):
            logger.warning(
                "%s: %d of %d distances are outside [0, 2] and are clipped to it; weight by ranks instead",
                name,
                num_outside,
                len(distance),
            )
    raw = weighting.raw(torch.from_numpy(np.clip(distance, 0.0, limit)))
    weight = torch.as_tensor(raw).double().numpy()
    if weight.shape != distance.shape:
        raise ValueError(f"{name}.raw gave the shape {weight.shape} for distances of the shape {distance.shape}")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise InputError(f"`weighting` {name} gave a weight that is negative or not finite; weights must be ≥ 0.")
    largest = weight.max()
    if largest == 0:
        logger.warning("%s: every weight is zero, so the %d facts are weighted uniformly", name, len(weight))
        return np.ones_like(weight)
    weight = weight / largest  # first, so that tiny weights keep their ratios
    result: FloatArray = weight / weight.mean()
    return result


def weights_of(weighting: Weighting, facts: ScoredFacts, *, is_rank_based: bool = False) -> FloatArray:
    """Loss weights of a table of kept facts: `loss_weights` of the column that the weighting reads.

    Args:
        weighting: The function.
        facts: The kept facts.
        is_rank_based: Whether to use only the order of `facts.distance`.

    Returns:
        float64 `(n,)`, ≥ 0, mean 1.
    """
    column = facts.base_nll if weighting.needs_nll else facts.distance
    return loss_weights(weighting, column, is_rank_based=is_rank_based)


def _spread_ranks(distance: FloatArray) -> FloatArray:
    """Ranks, averaged over ties, spread evenly over [0, 2]; 1 if there is only one rank."""
    if len(distance) == 1:
        return np.ones(1)
    _, inverse, count = np.unique(distance, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    rank = (last - (count - 1) / 2)[inverse]
    spread: FloatArray = MAX_DISTANCE * rank / (len(distance) - 1)
    return spread


def _require_gamma(gamma: float) -> float:
    if not (math.isfinite(gamma) and gamma >= 0):
        raise InputError(
            f"`gamma` must be a finite number of at least 0, got {gamma!r}. "
            "To reverse the direction, use Remoteness instead of Proximity, or Proximity instead of Remoteness."
        )
    return gamma
