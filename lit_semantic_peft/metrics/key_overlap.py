"""Which facts' keys overlap in a layer, before any training."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.interference.influence import gradient_cosine
from lit_semantic_peft.metrics.functional import per_fact_mean
from lit_semantic_peft.metrics.shapes import ShapedMetric


class KeyOverlap(ShapedMetric):
    """Overlap of the facts' keys: k_iᵀM⁻¹k_j / √(k_iᵀM⁻¹k_i · k_jᵀM⁻¹k_j), M = E[kkᵀ] + ρI.

    k_i is a layer's input at the position that predicts the answer of fact i. The mean is over the tokens of a corpus,
    and ρ = ridge · tr E[kkᵀ] / d. An edit at one key changes the value at another by this much. Keys and moment:
    `lit_semantic_peft.interference.fact_keys` and `key_second_moment`. Source: superposition in knowledge editing,
    arXiv 2408.07413; our reading.

    Args:
        num_facts: Number of facts n; `fact_index` runs from 0 to n − 1.
        dimension: Length d of a key.
        ridge: ρ in units of a key entry's mean square, > 0: a corpus of fewer than d tokens does not span all keys.
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = KeyOverlap(num_facts=2, dimension=2, ridge=1e-6)
        >>> metric.update_corpus(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1)
        >>> metric.update(torch.tensor([[2.0, 0.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        >>> [[round(value, 3) for value in row] for row in metric.compute().tolist()]
        [[1.0, 0.707], [0.707, 1.0]]
    """

    higher_is_better = None
    key_total: Tensor
    key_count: Tensor
    moment_total: Tensor
    num_tokens: Tensor

    def __init__(self, num_facts: int, dimension: int, ridge: float = 1e-2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_facts < 1 or dimension < 1 or not ridge > 0:
            raise ValueError(
                f"`num_facts` and `dimension` must be at least 1 and `ridge` above 0, "
                f"got {num_facts}, {dimension} and {ridge}"
            )
        self.ridge = ridge
        self.add_state("key_total", torch.zeros(num_facts, dimension), dist_reduce_fx="sum")
        self.add_state("key_count", torch.zeros(num_facts, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("moment_total", torch.zeros(dimension, dimension, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros(1, dtype=torch.long), dist_reduce_fx="sum")

    def update_corpus(self, moment: Tensor, num_tokens: int) -> None:
        """Adds a part of the corpus.

        Args:
            moment: Σ k kᵀ over its tokens, float `(d, d)`.
            num_tokens: Number of these tokens.
        """
        if moment.shape != self.moment_total.shape:
            raise ValueError(
                f"`moment` must have the shape {tuple(self.moment_total.shape)}, got {tuple(moment.shape)}"
            )
        self._computed = None  # torchmetrics resets its cached result in `update` only
        self.moment_total += moment.to(self.moment_total)
        self.num_tokens += num_tokens

    @override
    def update(self, keys: Tensor, fact_index: Tensor) -> None:
        """Adds keys. Several keys of one fact are averaged.

        Args:
            keys: float `(B, d)`.
            fact_index: int64 `(B,)`.
        """
        if keys.shape != (len(fact_index), self.key_total.shape[1]):
            raise ValueError(
                f"`keys` must have the shape ({len(fact_index)}, {self.key_total.shape[1]}), got {tuple(keys.shape)}"
            )
        fact_index = fact_index.to(self.key_total.device)
        self.key_total.index_add_(0, fact_index, keys.to(self.key_total))
        self.key_count.index_add_(0, fact_index, torch.ones_like(fact_index))

    @override
    def compute(self) -> Tensor:
        """The overlaps, float32 `(n, n)` in [−1, 1]; NaN for a fact without a key or with a key of zeros.

        Raises:
            ValueError: If no corpus was given.
        """
        if not int(self.num_tokens) or not bool(self.moment_total.diagonal().sum() > 0):
            raise ValueError("KeyOverlap needs a corpus: call `update_corpus` with at least one token before `compute`")
        moment = self.moment_total / self.num_tokens
        dimension = len(moment)
        moment = moment + self.ridge * moment.diagonal().mean() * torch.eye(dimension, device=moment.device)
        keys = per_fact_mean(self.key_total, self.key_count[:, None]).double()
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(moment), keys.T, upper=False).T
        return gradient_cosine(whitened @ whitened.T).float()
