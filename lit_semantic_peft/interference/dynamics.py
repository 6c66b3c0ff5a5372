"""The course of learning: when a fact was first recalled, how often it was forgotten, and how it ended."""

import torch
from torch import Tensor


def first_learned(history: Tensor) -> Tensor:
    """First epoch at whose end each fact was recalled.

    Args:
        history: Whether each fact was recalled at the end of each epoch, bool `(epochs, n)`.

    Returns:
        int64 `(n,)`, counted from 0; −1 for a fact that never was.

    Example:
        >>> first_learned(torch.tensor([[False, True, False], [True, False, False]])).tolist()
        [1, 0, -1]
    """
    _require_history(history)
    if not len(history):
        return torch.full(history.shape[1:], -1, dtype=torch.long, device=history.device)
    return torch.where(history.any(dim=0), history.int().argmax(dim=0), -1)


def forgetting_events(history: Tensor) -> Tensor:
    """Number of times each fact was recalled at the end of one epoch and not at the end of the next.

    Source: Toneva et al. 2019, "An Empirical Study of Example Forgetting", measured here once per epoch.

    Args:
        history: Whether each fact was recalled at the end of each epoch, bool `(epochs, n)`.

    Returns:
        int64 `(n,)`, ≥ 0.

    Example:
        >>> forgetting_events(torch.tensor([[True, True], [False, True], [True, True], [False, True]])).tolist()
        [2, 0]
    """
    _require_history(history)
    return (history[:-1] & ~history[1:]).sum(dim=0)


def final_state(history: Tensor) -> Tensor:
    """Whether each fact was recalled at the end of the last epoch.

    Args:
        history: Whether each fact was recalled at the end of each epoch, bool `(epochs, n)`.

    Returns:
        bool `(n,)`; False without any epoch.

    Example:
        >>> final_state(torch.tensor([[True, True], [False, True]])).tolist()
        [False, True]
    """
    _require_history(history)
    return history[-1].clone() if len(history) else torch.zeros_like(history.any(dim=0))


def stability(history: Tensor) -> Tensor:
    """Share of the epochs from the one in which each fact was first recalled on at whose end it was recalled.

    Args:
        history: Whether each fact was recalled at the end of each epoch, bool `(epochs, n)`.

    Returns:
        float32 `(n,)`, in (0, 1], 1 for a fact that was never forgotten; NaN for a fact that never was recalled.

    Example:
        >>> stability(torch.tensor([[False, True], [True, False], [True, False], [True, True]])).tolist()
        [1.0, 0.5]
    """
    _require_history(history)
    since = torch.where(first_learned(history) >= 0, len(history) - first_learned(history), 0)
    return torch.where(since > 0, history.sum(dim=0) / since.clamp(min=1), torch.nan)


def _require_history(history: Tensor) -> None:
    if history.dim() != 2 or history.dtype != torch.bool:
        raise ValueError(f"`history` must be bool (epochs, n), got {history.dtype} {tuple(history.shape)}")
