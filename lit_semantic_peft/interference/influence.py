"""Interference between facts, from the matrix of their gradients' inner products.

K_ij = ⟨g_i, g_j⟩ is the gradient matrix, w_j ≥ 0 the loss weight of fact j. To first order, one step of gradient
descent with learning rate η on Σ_j w_j ℓ_j / n changes the loss of fact i by −(η/n) Σ_j w_j K_ij (AdamW differs).

A fact whose gradient is not finite gets NaN and is left out of the sums for the others. Functions keep the dtype and
device of the matrix.
"""

import torch
from torch import Tensor

from lit_semantic_peft.statistics import gram_cosine


def gradient_cosine(gradient_dot: Tensor) -> Tensor:
    """Cosines C_ij = K_ij / √(K_ii K_jj).

    Args:
        gradient_dot: K, float `(k, k)`.

    Returns:
        float `(k, k)`, in [−1, 1]; below 0 interference, above 0 transfer. NaN where a gradient is zero or not finite.

    Example:
        >>> gradient_cosine(torch.tensor([[4.0, -2.0], [-2.0, 4.0]])).tolist()
        [[1.0, -0.5], [-0.5, 1.0]]
    """
    _require_square(gradient_dot)
    cosine: Tensor = gram_cosine(gradient_dot, torch)
    return cosine


def is_conflict(gradient_cosine: Tensor, threshold: float = 0.05) -> Tensor:
    """Pairs of different facts with C_ij < −τ.

    Args:
        gradient_cosine: C, float `(k, k)`.
        threshold: τ ≥ 0.

    Returns:
        bool `(k, k)`, False on the diagonal and where the cosine is not defined.
    """
    return (gradient_cosine < -threshold) & _others(gradient_cosine)


def conflict_rate(gradient_dot: Tensor, threshold: float = 0.05) -> Tensor:
    """Share of the other facts that are in conflict with each fact: those with C_ij < −τ.

    Args:
        gradient_dot: K, float `(k, k)`.
        threshold: τ ≥ 0.

    Returns:
        float `(k,)`, in [0, 1], over the others with a defined cosine; NaN where there is none.

    Example:
        >>> conflict_rate(torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0], [0.5, 0.0, 1.0]])).tolist()
        [0.5, 0.5, 0.0]
    """
    cosine = gradient_cosine(gradient_dot)
    counted = _others(cosine) & torch.isfinite(cosine)
    return _ratio(is_conflict(cosine, threshold).sum(dim=1).to(cosine.dtype), counted.sum(dim=1).to(cosine.dtype))


def net_transfer(gradient_dot: Tensor, loss_weight: Tensor, num_trained_facts: int) -> Tensor:
    """First-order effect of all other facts on each fact, relative to the fact's effect on itself.

    For fact i it is `(n − 1)/|J| · Σ_{j∈J} w_j K_ij / (w_i K_ii)`, J the sampled facts other than i, n the number of
    trained facts: the mean over the sample is extrapolated to all other trained facts.

    Args:
        gradient_dot: K of the sampled facts, float `(k, k)`.
        loss_weight: w, float `(k,)`, ≥ 0.
        num_trained_facts: n ≥ 1.

    Returns:
        float `(k,)`. Above 0: the others help. Below −1: they undo more than the fact learns. NaN where w_i K_ii = 0
        or there is no other fact.

    Example:
        >>> matrix = torch.tensor([[1.0, -2.0], [-2.0, 8.0]])
        >>> net_transfer(matrix, torch.ones(2), num_trained_facts=2).tolist()
        [-2.0, -0.25]
    """
    pull = _pull(gradient_dot, loss_weight)
    if num_trained_facts < 1:
        raise ValueError(f"`num_trained_facts` must be at least 1, got {num_trained_facts}")
    counted = _others(pull) & torch.isfinite(pull)
    from_others = torch.where(counted, pull, 0.0).sum(dim=1)
    mean = _ratio(from_others, counted.sum(dim=1).to(pull.dtype))
    return (num_trained_facts - 1) * _ratio(mean, pull.diagonal())


def predicted_change(gradient_dot: Tensor, loss_weight: Tensor, learning_rate: float, num_trained_facts: int) -> Tensor:
    """Change of each fact's loss by one small step of gradient descent on Σ_j w_j ℓ_j / n, to first order.

    Δℓ_i ≈ −(η/n) Σ_j w_j K_ij, j over all facts of the matrix, including i.

    Args:
        gradient_dot: K, float `(k, k)`.
        loss_weight: w, float `(k,)`, ≥ 0.
        learning_rate: η.
        num_trained_facts: n ≥ 1.

    Returns:
        float `(k,)`, nats per token, below 0 where the loss falls; NaN where the fact's own gradient is not finite.

    Example:
        >>> predicted_change(torch.tensor([[1.0, -2.0], [-2.0, 8.0]]), torch.ones(2), 0.1, 2).tolist()
        [0.05000000074505806, -0.30000001192092896]
    """
    pull = _pull(gradient_dot, loss_weight)
    total = torch.where(torch.isfinite(pull), pull, 0.0).sum(dim=1)
    return torch.where(torch.isfinite(pull.diagonal()), -learning_rate / num_trained_facts * total, torch.nan)


def harm_done(gradient_dot: Tensor, loss_weight: Tensor) -> Tensor:
    """How much each fact increases the losses of the others: harm_done_j = Σ_{i≠j} max(0, −w_j K_ij).

    Args:
        gradient_dot: K, float `(k, k)`.
        loss_weight: w, float `(k,)`, ≥ 0.

    Returns:
        float `(k,)`, ≥ 0, nats per token per unit of η/n. NaN where the fact's own gradient is not finite.

    Example:
        >>> harm_done(torch.tensor([[1.0, -2.0], [-2.0, 8.0]]), torch.tensor([0.5, 1.0])).tolist()
        [1.0, 2.0]
    """
    harm = _harm(gradient_dot, loss_weight)
    return torch.where(torch.isfinite(gradient_dot.diagonal()), harm.sum(dim=0), torch.nan)


def worst_aggressor(gradient_dot: Tensor, loss_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The fact that hurts each fact most: the j ≠ i with the largest −w_j K_ij.

    Args:
        gradient_dot: K, float `(k, k)`.
        loss_weight: w, float `(k,)`, ≥ 0.

    Returns:
        Row of the worst aggressor, int64 `(k,)`: the first of equals, −1 where no fact hurts. And its harm −w_j K_ij,
        float `(k,)`, ≥ 0, nats per token per unit of η/n, NaN where the fact's own gradient is not finite.

    Example:
        >>> row, harm = worst_aggressor(torch.tensor([[1.0, -2.0], [-2.0, 8.0]]), torch.tensor([0.0, 1.0]))
        >>> row.tolist(), harm.tolist()
        ([1, -1], [2.0, 0.0])
    """
    harm = _harm(gradient_dot, loss_weight)
    if not len(harm):
        return torch.zeros(0, dtype=torch.long, device=harm.device), harm.new_zeros(0)
    largest, row = harm.max(dim=1)
    row = torch.where(largest > 0, row, -1)
    return row, torch.where(torch.isfinite(gradient_dot.diagonal()), largest, torch.nan)


def undone_by(gradient_dot: Tensor, loss_weight: Tensor, harm: Tensor) -> Tensor:
    """Share of each fact's own step that a harm takes back: harm_i / (w_i K_ii).

    Args:
        gradient_dot: K, float `(k, k)`.
        loss_weight: w, float `(k,)`, ≥ 0.
        harm: Such as the worst aggressor's, −w_j K_ij, float `(k,)`, ≥ 0.

    Returns:
        float `(k,)`, ≥ 0; 1 undoes the step. NaN where w_i K_ii = 0 or is not finite.

    Example:
        >>> matrix = torch.tensor([[1.0, -2.0], [-2.0, 8.0]])
        >>> undone_by(matrix, torch.tensor([2.0, 1.0]), torch.tensor([2.0, 4.0])).tolist()
        [1.0, 0.5]
    """
    return _ratio(harm, _pull(gradient_dot, loss_weight).diagonal())


def _pull(gradient_dot: Tensor, loss_weight: Tensor) -> Tensor:
    """w_j K_ij."""
    _require_square(gradient_dot)
    if loss_weight.shape != gradient_dot.shape[:1]:
        raise ValueError(
            f"`loss_weight` must have the shape ({len(gradient_dot)},), one per row of `gradient_dot`, "
            f"got {tuple(loss_weight.shape)}"
        )
    return gradient_dot * loss_weight.to(gradient_dot)


def _harm(gradient_dot: Tensor, loss_weight: Tensor) -> Tensor:
    """max(0, −w_j K_ij) where it is defined and i ≠ j, else 0."""
    pull = _pull(gradient_dot, loss_weight)
    return torch.where(_others(pull) & torch.isfinite(pull), (-pull).clamp(min=0), 0.0)


def _others(matrix: Tensor) -> Tensor:
    return ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """NaN instead of a division by zero."""
    is_defined = denominator != 0
    return torch.where(is_defined, numerator / torch.where(is_defined, denominator, 1.0), torch.nan)


def _require_square(gradient_dot: Tensor) -> None:
    if gradient_dot.dim() != 2 or gradient_dot.shape[0] != gradient_dot.shape[1]:
        raise ValueError(f"`gradient_dot` must have the shape (k, k), got {tuple(gradient_dot.shape)}")
