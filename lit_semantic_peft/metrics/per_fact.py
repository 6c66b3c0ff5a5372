"""Means per fact, and means over facts, from sums and counts that add up over processes."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.metrics.functional import is_pushed_away, mean_over_facts, per_fact_mean, share
from lit_semantic_peft.metrics.shapes import ShapedMetric


class PerFactMean(ShapedMetric):
    """Mean of each fact's measurements: its negative log-likelihood, its recall, its distance.

    A fact that a distributed sampler repeats to even out the ranks is measured twice and averages out.

    Args:
        num_facts: Number of facts n; `fact_index` runs from 0 to n − 1.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = PerFactMean(num_facts=3)
        >>> metric.update(torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0, 2, 0]))
        >>> metric.compute().tolist()
        [1.0, nan, 3.0]
    """

    total: Tensor
    count: Tensor

    def __init__(self, num_facts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_facts < 1:
            raise ValueError(f"`num_facts` must be at least 1, got {num_facts}")
        self.num_facts = num_facts
        self.add_state("total", torch.zeros(num_facts), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_facts, dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, value: Tensor, fact_index: Tensor) -> None:
        """Adds measurements.

        Args:
            value: float or bool `(B,)`.
            fact_index: int64 `(B,)`.
        """
        if value.shape != fact_index.shape or value.dim() != 1:
            raise ValueError(
                f"`value` and `fact_index` must have the same shape (B,), "
                f"got {tuple(value.shape)} and {tuple(fact_index.shape)}"
            )
        fact_index = fact_index.to(self.total.device)
        self.total.index_add_(0, fact_index, value.detach().to(self.total))
        self.count.index_add_(0, fact_index, torch.ones_like(fact_index))

    @override
    def compute(self) -> Tensor:
        """Mean of each fact, float `(n,)`, unit of the values; NaN for a fact that was never measured."""
        return per_fact_mean(self.total, self.count)


class MeanOverFacts(PerFactMean):
    """Mean over the measured facts of each fact's own mean: one number, a fact measured twice counts once.

    Of yes and no it is the share of the facts, of `is_recalled` for example.

    Args:
        num_facts: Number of facts n; `fact_index` runs from 0 to n − 1.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = MeanOverFacts(num_facts=3)
        >>> metric.update(torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0, 2, 0]))
        >>> metric.compute().item()
        2.0
    """

    @override
    def compute(self) -> Tensor:
        """Mean over facts, float scalar, unit of the values; NaN where nothing was measured."""
        return mean_over_facts(self.total, self.count)


class PushedAway(PerFactMean):
    """Facts that training moved the model away from: d_after − d_before > ε.

    Source: the first finding of Wang & Li 2024, our reading.

    Args:
        num_facts: Number of facts n; `fact_index` runs from 0 to n − 1.
        epsilon: ε ≥ 0, in the unit of the distance.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = PushedAway(num_facts=3)
        >>> metric.update(torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9]), torch.tensor([0, 2]))
        >>> result = metric.compute()
        >>> result["fact_index"].tolist(), result["share"].item()
        ([2], 0.5)
    """

    higher_is_better = False

    def __init__(self, num_facts: int, epsilon: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_facts, **kwargs)
        if not epsilon >= 0:
            raise ValueError(f"`epsilon` must be at least 0, got {epsilon}")
        self.epsilon = epsilon

    @override
    def update(self, distance_before: Tensor, distance_after: Tensor, fact_index: Tensor) -> None:  # type: ignore[override]
        """Adds measurements.

        Args:
            distance_before: Distance under the base model, float `(B,)`.
            distance_after: Distance under the trained model, float `(B,)`.
            fact_index: int64 `(B,)`.
        """
        super().update(distance_after - distance_before.to(distance_after), fact_index)

    @override
    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """The facts that were pushed away.

        Returns:
            `distance_delta` d_after − d_before, float `(n,)`, NaN where not measured; `is_pushed_away` bool `(n,)`;
            `fact_index` of those pushed away, int64 `(m,)`; `share` of the measured facts, float scalar in [0, 1].
        """
        delta = per_fact_mean(self.total, self.count)
        pushed = is_pushed_away(delta, self.epsilon)
        return {
            "distance_delta": delta,
            "is_pushed_away": pushed,
            "fact_index": pushed.nonzero().flatten(),
            "share": share(pushed, torch.isfinite(delta)),
        }
