"""Learning history of each fact: when first learned, how often forgotten, how stable, recalled at the end."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.metrics.functional import per_fact_mean
from lit_semantic_peft.metrics.shapes import ShapedMetric


class LearningDynamics(ShapedMetric):
    """When each fact was first recalled and how often it was forgotten, from one validation to the next.

    Within a validation `update` sums measurements on each rank. `end_validation`, which every rank must call, adds the
    sums of all ranks and closes the validation with the same result on each. A fact is recalled in a validation if
    every measurement in it is a recall. A fact that was not measured keeps its state. A fact is forgotten if it is not
    recalled in a validation after one in which it was (Toneva et al. 2019, "An Empirical Study of Example Forgetting",
    who look at each step), so that more validations in an epoch may find more of it. Closed validations are equal on
    all ranks, so that with `sync_on_compute=False` `compute` is not a collective.

    The states are persistent: put `state_dict()` into the checkpoint, after `end_validation`, so that a resumed run
    continues the counts. Keep the metric as an attribute and do not `self.log` it: Lightning resets logged metrics
    after every epoch.

    Args:
        num_facts: Number of facts n; `fact_index` runs from 0 to n − 1.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = LearningDynamics(num_facts=2)
        >>> for recalled in ([False, True], [True, False]):
        ...     metric.update(torch.tensor(recalled), torch.tensor([0, 1]))
        ...     metric.end_validation()
        >>> result = metric.compute()
        >>> result["first_learned"].tolist(), result["forgetting_events"].tolist(), result["is_recalled"].tolist()
        ([1, 0], [0, 1], [True, False])
    """

    higher_is_better = None
    recalled_count: Tensor
    measured_count: Tensor
    first_learned: Tensor
    forgetting_events: Tensor
    is_recalled: Tensor
    num_recalled: Tensor
    num_measured_since_learned: Tensor
    num_measured: Tensor
    num_validations: Tensor

    def __init__(self, num_facts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_facts < 1:
            raise ValueError(f"`num_facts` must be at least 1, got {num_facts}")
        zeros = torch.zeros(num_facts, dtype=torch.long)
        # The open validation: summed over ranks.
        self.add_state("recalled_count", zeros.clone(), dist_reduce_fx="sum", persistent=True)
        self.add_state("measured_count", zeros.clone(), dist_reduce_fx="sum", persistent=True)
        # The closed validations: equal on all ranks, so that the maximum does not change them.
        self.add_state("first_learned", zeros - 1, dist_reduce_fx="max", persistent=True)
        self.add_state("forgetting_events", zeros.clone(), dist_reduce_fx="max", persistent=True)
        self.add_state("is_recalled", zeros.clone(), dist_reduce_fx="max", persistent=True)
        self.add_state("num_recalled", zeros.clone(), dist_reduce_fx="max", persistent=True)
        self.add_state("num_measured_since_learned", zeros.clone(), dist_reduce_fx="max", persistent=True)
        self.add_state("num_measured", zeros.clone(), dist_reduce_fx="max", persistent=True)
        self.add_state("num_validations", torch.zeros(1, dtype=torch.long), dist_reduce_fx="max", persistent=True)

    @override
    def update(self, recalled: Tensor, fact_index: Tensor) -> None:
        """Adds measurements to the open validation.

        Args:
            recalled: bool `(B,)`.
            fact_index: int64 `(B,)`.
        """
        if recalled.shape != fact_index.shape or recalled.dim() != 1:
            raise ValueError(
                f"`recalled` and `fact_index` must have the same shape (B,), "
                f"got {tuple(recalled.shape)} and {tuple(fact_index.shape)}"
            )
        fact_index = fact_index.to(self.recalled_count.device)
        self.recalled_count.index_add_(0, fact_index, recalled.bool().to(self.recalled_count))
        self.measured_count.index_add_(0, fact_index, torch.ones_like(fact_index))

    def end_validation(self, epoch: int | None = None) -> None:
        """Closes the open validation. A collective under DDP: every rank calls it.

        Args:
            epoch: The epoch that it is in, ≥ 0, for `first_learned`; None: the number of validations closed so far.
        """
        if epoch is not None and epoch < 0:
            raise ValueError(f"`epoch` must be at least 0, got {epoch}")
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=True):
            is_measured = self.measured_count > 0
            is_recalled = is_measured & (self.recalled_count == self.measured_count)
        number = self.num_validations if epoch is None else torch.full_like(self.num_validations, epoch)
        was_recalled = self.is_recalled.bool()
        self.first_learned = torch.where((self.first_learned < 0) & is_recalled, number, self.first_learned)
        self.forgetting_events = self.forgetting_events + (was_recalled & is_measured & ~is_recalled)
        self.is_recalled = torch.where(is_measured, is_recalled, was_recalled).long()
        self.num_recalled = self.num_recalled + is_recalled
        self.num_measured_since_learned = self.num_measured_since_learned + (is_measured & (self.first_learned >= 0))
        self.num_measured = self.num_measured + is_measured
        self.num_validations = self.num_validations + 1
        self.recalled_count = torch.zeros_like(self.recalled_count)
        self.measured_count = torch.zeros_like(self.measured_count)
        self._computed = None  # the cached result is of an earlier validation
        self._update_count = max(self._update_count, 1)  # no warning after a validation without updates

    @override
    def compute(self) -> dict[str, Tensor]:
        """The history up to the last closed validation.

        Returns:
            `first_learned` int64 `(n,)`, the epoch of the first recall, −1 for never; `forgetting_events` int64 `(n,)`;
            `stability` float `(n,)` in (0, 1], the share in which it was recalled of the validations that measured the
            fact from its first recall on (including that one), NaN for never; `is_recalled` bool `(n,)`, the state when
            last measured; `num_measured` int64 `(n,)`, the number of validations that measured the fact.
        """
        return {
            "first_learned": self.first_learned,
            "forgetting_events": self.forgetting_events,
            "stability": per_fact_mean(self.num_recalled, self.num_measured_since_learned),
            "is_recalled": self.is_recalled.bool(),
            "num_measured": self.num_measured,
        }

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._computed = None
        self._update_count = max(self._update_count, int(self.num_validations))  # torchmetrics does not restore it
