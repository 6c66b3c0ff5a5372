"""Whether a fact would have been learned better alone."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.metrics.functional import mean_over_facts, per_fact_mean, share
from lit_semantic_peft.metrics.per_fact import PerFactMean


class AloneVersusTogether(PerFactMean):
    """log p(target) after joint training in which a fact was seen n times, minus after n steps on that fact alone.

    Both start from the same weights, with the same optimizer and learning rates. Below 0 the other facts hurt, above 0
    they helped. The two runs differ in their number of optimizer steps (joint training shares its steps among facts),
    so the result contains both numbers. Training alone: `lit_semantic_peft.interference.train_alone`. Source: the
    second finding of Wang & Li 2024, our reading.

    Args:
        num_facts: Number of facts; `fact_index` runs from 0 to num_facts − 1.
        steps_together: Optimizer steps of the joint training.
        steps_alone: n, optimizer steps on each fact alone; their mean where facts differ.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = AloneVersusTogether(num_facts=3, steps_together=60, steps_alone=10)
        >>> metric.update(torch.tensor([-2.0, -0.5]), torch.tensor([-1.0, -1.0]), torch.tensor([0, 2]))
        >>> result = metric.compute()
        >>> result["difference"].tolist(), result["share_below_0"].item(), result["steps_alone"].item()
        ([-1.0, nan, 0.5], 0.5, 10)
    """

    higher_is_better = True

    def __init__(self, num_facts: int, steps_together: int, steps_alone: float, **kwargs: Any) -> None:
        super().__init__(num_facts, **kwargs)
        for name, value in (("steps_together", steps_together), ("steps_alone", steps_alone)):
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}")
        self.steps_together = steps_together
        self.steps_alone = steps_alone

    @override
    def update(self, together: Tensor, alone: Tensor, fact_index: Tensor) -> None:  # type: ignore[override]
        """Adds measurements.

        Args:
            together: log p(target) after joint training, float `(B,)`, nats.
            alone: log p(target) after training alone, float `(B,)`, nats.
            fact_index: int64 `(B,)`.
        """
        super().update(together - alone.to(together), fact_index)

    @override
    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """The effect of the other facts.

        Returns:
            `difference` together − alone, float `(num_facts,)`, nats, NaN where not measured; `mean` over the measured
            facts, float scalar; `share_below_0`, the share of them whose target is more likely after training alone,
            float scalar in [0, 1]; `steps_together`, int64 scalar; `steps_alone`, scalar.
        """
        difference = per_fact_mean(self.total, self.count)
        return {
            "difference": difference,
            "mean": mean_over_facts(self.total, self.count),
            "share_below_0": share(difference < 0, ~difference.isnan()),
            "steps_together": torch.tensor(self.steps_together, device=difference.device),
            "steps_alone": torch.tensor(self.steps_alone, device=difference.device),
        }
