"""How far a fact's target is from what the base model would say.

The paper's own formulas are not known to us; every distance here is our reading of "the distance between the model's
answer and the target". All are teacher-forced unless said otherwise, cost no pass of their own (they share the one
that measures the target's likelihood), leave the end token out, and lie in [0, 2]; larger is farther.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_semantic_peft.errors import InputError

Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True, slots=True)
class TargetPass:
    """What one forward pass over B facts says at their N target tokens, in row-major order.

    Attributes:
        logits: float `(N, V)` at the positions that predict the target tokens.
        hidden: float `(N, H)`, last hidden state at those positions, as the output projection receives it.
        targets: int64 `(N,)`, the target tokens.
        row: int64 `(N,)`, which of the B facts each target token belongs to, ascending.
        num_facts: B.
        input_embeddings: float `(V, H)`.
        output_embeddings: float `(V, H)`.
        answers: For each fact the ids of its greedy answer, at most as many as the target has; None unless a
            distance asked for them by `needs_answers`.
    """

    logits: Tensor
    hidden: Tensor
    targets: Tensor
    row: Tensor
    num_facts: int
    input_embeddings: Tensor
    output_embeddings: Tensor
    answers: list[list[int]] | None = None


class Distance(ABC):
    """A distance between what the model says and what it should say. Named in the YAML by `class_path`."""

    is_rank_based: bool = False
    """Whether only the order of the values means something, so that a weighting goes by ranks."""

    needs_answers: bool = False
    """Whether greedy answers are needed: one generation of at most the target's length per fact."""

    @property
    def name(self) -> str:
        """The name under which the distance stands in tables."""
        return type(self).__name__

    @abstractmethod
    def measure(self, outputs: TargetPass) -> Tensor:
        """Measures B facts.

        Args:
            outputs: The forward pass.

        Returns:
            float `(B,)`.
        """


class _TokenDistance(Distance):
    """Pools the distances of a fact's target tokens.

    Args:
        pooling: `mean` over the target tokens, or only the `first` or `last` of them.
        centered: Whether the mean embedding of the vocabulary is subtracted first. Token embeddings point in a
            common direction, which makes uncentred cosines large.

    Raises:
        InputError: If `pooling` is unknown.
    """

    def __init__(self, pooling: Pooling = "mean", centered: bool = False) -> None:
        if pooling not in get_args(Pooling):
            raise InputError(f"`pooling` must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        self.pooling = pooling
        self.centered = centered

    @abstractmethod
    def token_distance(self, outputs: TargetPass) -> Tensor:
        """Distance of each target token, float `(N,)`."""

    def measure(self, outputs: TargetPass) -> Tensor:
        """Pools `token_distance` over each fact's target tokens, float `(B,)`."""
        return _pool(self.token_distance(outputs), outputs.row, outputs.num_facts, self.pooling)


class ExpectedEmbeddingDistance(_TokenDistance):
    """1 − cos(Σ_v p(v) e_v, e_y): from the expected input embedding under the model to the target token's.

    Our reading; the default. Unlike an argmax it moves smoothly with the model's belief.
    """

    def token_distance(self, outputs: TargetPass) -> Tensor:
        """Distance of each target token, float `(N,)` in [0, 2]."""
        embeddings = _table(outputs.input_embeddings, self.centered)
        expected = outputs.logits.float().softmax(dim=-1) @ embeddings
        return _cosine_distance(expected, embeddings[outputs.targets])


class HiddenStateDistance(_TokenDistance):
    """1 − cos(h, u_y): from the last hidden state that predicts the target token to the token's output embedding.

    Our reading. Ignores the length of both, which the logit does not.
    """

    def token_distance(self, outputs: TargetPass) -> Tensor:
        """Distance of each target token, float `(N,)` in [0, 2]."""
        embeddings = _table(outputs.output_embeddings, self.centered)
        return _cosine_distance(outputs.hidden.float(), embeddings[outputs.targets])


class ResponseDistance(Distance):
    """1 − cos(mean embedding of the greedy answer, mean embedding of the target): the literal reading.

    The answer is generated freely, at most as long as the target, up to the first end token. An empty answer has
    distance 1: no direction. Costs one short generation per fact.

    Args:
        centered: Whether the mean embedding of the vocabulary is subtracted first.
    """

    needs_answers = True

    def __init__(self, centered: bool = False) -> None:
        self.centered = centered

    def measure(self, outputs: TargetPass) -> Tensor:
        """Distance of each fact, float `(B,)` in [0, 2]."""
        if outputs.answers is None:
            raise ValueError("ResponseDistance needs `answers` in the outputs")
        embeddings = _table(outputs.input_embeddings, self.centered)
        target = _pool(embeddings[outputs.targets], outputs.row, outputs.num_facts, "mean")
        answer = torch.stack(
            [
                embeddings[torch.tensor(ids, device=embeddings.device)].mean(dim=0)
                if ids
                else torch.zeros_like(embeddings[0])
                for ids in outputs.answers
            ]
        )
        return _cosine_distance(answer, target)


class Surprisal(Distance):
    """Mean negative log-likelihood of the target, in nats per token: [0, ∞).

    Not a semantic distance but the baseline that one must beat. Filters use it as it is; weightings use its ranks.
    """

    is_rank_based = True

    def measure(self, outputs: TargetPass) -> Tensor:
        """Mean negative log-likelihood of each fact's target tokens, float `(B,)`."""
        nll = F.cross_entropy(outputs.logits.float(), outputs.targets, reduction="none")
        return _pool(nll, outputs.row, outputs.num_facts, "mean")


def _table(embeddings: Tensor, centered: bool) -> Tensor:
    embeddings = embeddings.float()
    return embeddings - embeddings.mean(dim=0) if centered else embeddings


def _cosine_distance(left: Tensor, right: Tensor) -> Tensor:
    """1 − cosine along the last dimension, clamped to [0, 2] against rounding; 1 where either is zero."""
    return (1.0 - F.cosine_similarity(left, right, dim=-1)).clamp(0.0, 2.0)


def _pool(values: Tensor, row: Tensor, num_facts: int, pooling: Pooling) -> Tensor:
    """Pools per-token values `(N, ...)` of ascending `row` into `(B, ...)`."""
    count = torch.bincount(row, minlength=num_facts)
    if pooling == "mean":
        shape = (num_facts, *values.shape[1:])
        total = torch.zeros(shape, dtype=values.dtype, device=values.device).index_add_(0, row, values)
        return total / count.view(-1, *([1] * (values.dim() - 1)))
    end = count.cumsum(dim=0)
    return values[end - 1 if pooling == "last" else end - count]
