"""What an adapter did to everything else: text that has nothing to do with the facts, and facts known before.

For a loop of your own. The evaluation of this package uses `evaluation.RETENTION`, with the same definitions; a test
compares the two.
"""

from typing import Any

import torch
from torch import Tensor

from lit_semantic_peft.metrics.functional import per_fact_mean
from lit_semantic_peft.metrics.shapes import ShapedMetric


class Retention(ShapedMetric):
    """Likelihood of unrelated text and accuracy on known facts, base model against trained model.

    Sums and counts, which add up over processes.

    Args:
        kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = Retention()
        >>> before, after, num_tokens = torch.tensor([3.0, 2.0]), torch.tensor([3.5, 2.0]), torch.tensor([10, 30])
        >>> metric.update(before, after, num_tokens, is_still_known=torch.tensor([True, False]))
        >>> list(metric.compute())
        ['retention_nll_before', 'retention_nll_after', 'retention_nll_delta', 'retention_known']
        >>> [value.item() for value in metric.compute().values()]
        [2.25, 2.375, 0.25, 0.5]
    """

    nll_before: Tensor
    nll_after: Tensor
    nll_delta: Tensor
    num_texts: Tensor
    num_tokens: Tensor
    num_kept: Tensor
    num_known: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("nll_before", "nll_after", "nll_delta"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("num_texts", "num_tokens", "num_kept", "num_known"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nll_before: Tensor, nll_after: Tensor, num_tokens: Tensor, is_still_known: Tensor) -> None:
        """Adds texts and known facts; either may be empty.

        Args:
            nll_before: Mean negative log-likelihood of each text, base model, float `(B,)`, nats per token.
            nll_after: The same, trained model.
            num_tokens: Tokens of each text, int64 `(B,)`.
            is_still_known: For facts that the base model answers right, whether the trained model does, bool `(M,)`.
        """
        self.nll_before += (nll_before.double() * num_tokens).sum()
        self.nll_after += (nll_after.double() * num_tokens).sum()
        self.nll_delta += (nll_after.double() - nll_before.double()).sum()
        self.num_texts += num_tokens.numel()
        self.num_tokens += num_tokens.sum()
        self.num_kept += is_still_known.sum()
        self.num_known += is_still_known.numel()

    def compute(self) -> dict[str, Tensor]:
        """What changed.

        Returns:
            `retention_nll_before`, `retention_nll_after`: over all tokens, nats per token; `retention_nll_delta`: after
            − before, mean over the texts, positive is harm; `retention_known`: share of the facts known before that
            still are, [0, 1]. float64 scalars, NaN where nothing was measured.
        """
        return {
            "retention_nll_before": per_fact_mean(self.nll_before, self.num_tokens),
            "retention_nll_after": per_fact_mean(self.nll_after, self.num_tokens),
            "retention_nll_delta": per_fact_mean(self.nll_delta, self.num_texts),
            "retention_known": per_fact_mean(self.num_kept.double(), self.num_known),
        }
