"""Interference among a sample of facts, from gradient matrices."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.interference.influence import (
    conflict_rate,
    gradient_cosine,
    harm_done,
    net_transfer,
    undone_by,
    worst_aggressor,
)
from lit_semantic_peft.metrics.functional import group_interference, interference_summary, per_fact_mean
from lit_semantic_peft.metrics.shapes import ShapedMetric


class GradientInterference(ShapedMetric):
    """Interference between the sampled facts, from their gradient matrix K_ij = ⟨g_i, g_j⟩.

    Formulas: `lit_semantic_peft.interference.influence`. Several updates (by ranks with the whole matrix or some of its
    rows, or at several steps) are averaged entry by entry before anything is computed from them.

    Args:
        fact_index: Dense index of each sampled fact, int `(k,)`, in the order of the matrix's rows, no duplicates.
        loss_weight: Loss weight of each sampled fact, float `(k,)`, ≥ 0.
        num_trained_facts: Number n of facts that are trained, for the extrapolation from the sample.
        threshold: τ ≥ 0; a pair is in conflict where its cosine is below −τ.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = GradientInterference(fact_index=[7, 3], loss_weight=[1.0, 1.0], num_trained_facts=2)
        >>> metric.update(torch.tensor([[1.0, -2.0], [-2.0, 8.0]]))
        >>> result = metric.compute()
        >>> result["net_transfer"].tolist(), result["worst_aggressor"].tolist()
        ([-2.0, -0.25], [3, 7])
        >>> metric.summary()["share_net_transfer_below_minus_1"]
        0.5
    """

    higher_is_better = None
    fact_index: Tensor
    loss_weight: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self,
        fact_index: Tensor | Sequence[int],
        loss_weight: Tensor | Sequence[float],
        num_trained_facts: int,
        threshold: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        index = torch.as_tensor(fact_index, dtype=torch.long).cpu().clone()
        weight = torch.as_tensor(loss_weight, dtype=torch.float32).cpu().clone()
        if index.dim() != 1 or not len(index) or len(set(index.tolist())) != len(index):
            raise ValueError(f"`fact_index` must name at least one fact and each once, got {index.tolist()}")
        if weight.shape != index.shape or not bool((weight >= 0).all()):
            raise ValueError(f"`loss_weight` must hold {len(index)} numbers of at least 0, got {weight.tolist()}")
        if num_trained_facts < 1:
            raise ValueError(f"`num_trained_facts` must be at least 1, got {num_trained_facts}")
        if not threshold >= 0:
            raise ValueError(f"`threshold` must be at least 0, got {threshold}")
        self.register_buffer("fact_index", index, persistent=False)
        self.register_buffer("loss_weight", weight, persistent=False)
        self.num_trained_facts = num_trained_facts
        self.threshold = threshold
        shape = (len(index), len(index))
        self.add_state("total", torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, gradient_dot: Tensor, rows: Tensor | None = None) -> None:
        """Adds a gradient matrix, or some rows of it.

        Args:
            gradient_dot: K, float `(k, k)`, or `(m, k)` with `rows`.
            rows: Which rows of the sample `gradient_dot` holds, int64 `(m,)`, no duplicates; all in order where None.
        """
        if rows is None:
            rows = torch.arange(len(self.total))
        rows = rows.to(self.total.device)
        if gradient_dot.shape != (len(rows), len(self.total)):
            raise ValueError(
                f"`gradient_dot` must have the shape ({len(rows)}, {len(self.total)}), got {tuple(gradient_dot.shape)}"
            )
        gradient_dot = gradient_dot.detach().to(self.total)
        self.total.index_add_(0, rows, gradient_dot)
        self.count.index_add_(0, rows, torch.ones_like(gradient_dot, dtype=torch.long))

    @override
    def compute(self) -> dict[str, Tensor]:
        """All results from the averaged matrix, in the order of the sample.

        Returns:
            `fact_index` int64 `(k,)`; `gradient_dot` and `gradient_cosine` float `(k, k)`; `net_transfer`,
            `conflict_rate`, `harm_done` float `(k,)`; `worst_aggressor`, the `fact_index` of the fact that hurts each
            most, int64 `(k,)`, −1 where none does; `worst_aggressor_harm`, and `undone_by_worst`, the share of a fact's
            own step that it takes back, float `(k,)`. NaN where not defined.
        """
        matrix = per_fact_mean(self.total, self.count)
        row, harm = worst_aggressor(matrix, self.loss_weight)
        return {
            "fact_index": self.fact_index,
            "gradient_dot": matrix,
            "gradient_cosine": gradient_cosine(matrix),
            "net_transfer": net_transfer(matrix, self.loss_weight, self.num_trained_facts),
            "conflict_rate": conflict_rate(matrix, self.threshold),
            "harm_done": harm_done(matrix, self.loss_weight),
            "worst_aggressor": torch.where(row >= 0, self.fact_index[row.clamp(min=0)], -1),
            "worst_aggressor_harm": harm,
            "undone_by_worst": undone_by(matrix, self.loss_weight, harm),
        }

    def summary(self) -> dict[str, float]:
        """Scalars for a logger; see `interference_summary`. A collective under DDP, as `compute` is."""
        result = self.compute()
        scalars = interference_summary(
            result["gradient_cosine"], result["net_transfer"], result["harm_done"], self.threshold
        )
        return {name: float(value) for name, value in scalars.items()}

    def by_group(self, group: Sequence[str | int | None]) -> dict[str, dict[str, float]]:
        """Interference received and caused by each group of the sampled facts. A collective under DDP, as `compute` is.

        Args:
            group: Group of every fact of the set, by `fact_index`; None for a fact without a group.

        Returns:
            The numbers of `group_interference` for each group that has a sampled fact, sorted by group.
        """
        result = self.compute()
        mine = [group[index] for index in result["fact_index"].tolist()]
        names: set[Any] = {one for one in mine if one is not None}
        return {
            str(name): group_interference(
                result["gradient_cosine"],
                result["net_transfer"],
                result["harm_done"],
                torch.tensor([one == name for one in mine], device=result["gradient_cosine"].device),
                self.threshold,
            )
            for name in sorted(names)
        }

    def columns(self, fact_id: Sequence[str]) -> dict[str, list[Any]]:
        """The sampled facts' numbers as columns of a fact table. A collective under DDP, as `compute` is.

        Args:
            fact_id: Id of every fact of the set, by `fact_index`.

        Returns:
            `net_transfer`, `conflict_rate`, `harm_done`, `undone_by_worst` and `worst_aggressor` (a fact's id), one
            entry per fact of the set; None for a fact that was not sampled.
        """
        numbers = ("net_transfer", "conflict_rate", "harm_done", "undone_by_worst")
        result = {name: values.tolist() for name, values in self.compute().items() if values.dim() == 1}
        columns: dict[str, list[Any]] = {name: [None] * len(fact_id) for name in (*numbers, "worst_aggressor")}
        for row, index in enumerate(result["fact_index"]):
            for name in numbers:
                columns[name][index] = result[name][row]
            aggressor = result["worst_aggressor"][row]
            columns["worst_aggressor"][index] = fact_id[aggressor] if aggressor >= 0 else None
        return columns
