"""Baselines: weightings by the model's confidence in the target instead of a semantic distance.

p = exp(−ℓ) is the geometric mean of the target tokens' probabilities, ℓ the fact's mean negative log-likelihood.
"""

import math

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.weightings import Weighting


class FLOW(Weighting):
    """Larger weights for facts with a low loss under the base model: w = exp(−ℓ/τ), τ the median ℓ of the kept facts.

    Range of the raw weight: (0, 1]; 0.37 at the median. Cost: no pass. Source: Sanyal et al. 2025, arXiv 2502.02797
    (fine-tuning with the base model's losses as weights), per sample there as here.

    Args:
        tau: τ > 0, in nats per token; None: the median.

    Raises:
        InputError: If `tau` is not above 0.

    Example:
        >>> FLOW().raw(torch.tensor([0.0, 2.0, 4.0])).tolist()
        [1.0, 0.3678794503211975, 0.1353352814912796]
    """

    needs_nll = True

    def __init__(self, tau: float | None = None) -> None:
        if tau is not None and not 0 < tau < math.inf:
            raise InputError(f"`tau` must be a finite number above 0, got {tau!r}; leave it out for the median loss.")
        self.tau = tau
        self.needs_all_facts = tau is None

    @override
    def raw(self, distance: Tensor) -> Tensor:
        tau = distance.quantile(0.5) if self.tau is None else torch.tensor(self.tau).to(distance)
        return torch.exp(-distance / tau.clamp(min=torch.finfo(distance.dtype).tiny))


class Focal(Weighting):
    """Smaller weights for facts that the model predicts with confidence: w = (1 − p)^γ.

    Range of the raw weight: [0, 1]; 0 at p = 1 (γ > 0). Cost: no pass. Source: Lin et al. 2017, arXiv 1708.02002,
    equation 4. The paper uses the current model's p: `Online(Focal())`.

    Args:
        gamma: γ ≥ 0; 0 is uniform.

    Raises:
        InputError: If `gamma` is out of its range.

    Example:
        >>> Focal(gamma=1.0).raw(torch.tensor([0.0, math.log(2.0)])).tolist()
        [0.0, 0.5]
    """

    needs_nll = True

    def __init__(self, gamma: float = 2.0) -> None:
        if not 0 <= gamma < math.inf:
            raise InputError(f"`gamma` must be a finite number of at least 0, got {gamma!r}.")
        self.gamma = gamma

    @override
    def raw(self, distance: Tensor) -> Tensor:
        return (-torch.expm1(-distance)) ** self.gamma


class MediumConfidence(Weighting):
    """Largest weights for facts of medium confidence: w = max(0, p·(c − log(p/(1 − p)))).

    Range of the raw weight: [0, 1] for c = 2, with the peak at p = 1/2. For another c the height of the peak is the
    odds p/(1 − p) at its p. 0 at p = 0 and above p = 1/(1 + e^−c). Cost: no pass. Source: after InfoSFT (Sabbaghi
    et al. 2026, arXiv 2605.14967), which weights tokens; weighting facts by their mean p is our reading.

    Args:
        c: Log-odds at and above which the weight is 0, finite.

    Raises:
        InputError: If `c` is not finite.

    Example:
        >>> MediumConfidence().raw(torch.tensor([0.0, math.log(2.0), 50.0])).round(decimals=4).tolist()
        [0.0, 1.0, 0.0]
    """

    needs_nll = True

    def __init__(self, c: float = 2.0) -> None:
        if not math.isfinite(c):
            raise InputError(f"`c` must be a finite number, got {c!r}.")
        self.c = c

    @override
    def raw(self, distance: Tensor) -> Tensor:
        p = torch.exp(-distance)
        log_odds = -distance - torch.log((-torch.expm1(-distance)).clamp(min=torch.finfo(p.dtype).tiny))
        return (p * (self.c - log_odds)).clamp(min=0.0)
