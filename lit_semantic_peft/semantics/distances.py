"""Distances between a fact's target and the base model's prediction.

The paper's formulas were not available; every distance here is our reading of "the distance between the model's answer
and the target". Unless stated otherwise, distances are teacher-forced, need no forward pass of their own (they share
the one that measures the target's likelihood), exclude the end token, and are in [0, 2]; larger is farther.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.arguments import written
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.sampling import Sampling

Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True, slots=True)
class TargetPass:
    """Outputs of one forward pass over B facts at their N target tokens, in row-major order.

    Attributes:
        logits: float `(N, V)` at the positions that predict the target tokens.
        hidden: float `(N, H)`, last hidden state at those positions, as the output projection receives it; None where
            that was not seen.
        targets: int64 `(N,)`, the target tokens.
        row: int64 `(N,)`, row of the fact that each target token belongs to, ascending.
        num_facts: B.
        input_embeddings: float `(V, H)`.
        output_embeddings: float `(V, H)`.
        answers: Ids of each fact's greedy answer, at most as many as the target has; None in a training step.
        samples: By `Distance.sampling`: the sampled answers of each fact, each at most as long as the target.
        decode: Converts ids to text, for distances between texts.
    """

    logits: Tensor
    hidden: Tensor | None
    targets: Tensor
    row: Tensor
    num_facts: int
    input_embeddings: Tensor
    output_embeddings: Tensor
    answers: list[list[int]] | None = None
    samples: Mapping[Sampling, list[list[list[int]]]] = field(default_factory=dict)
    decode: Callable[[Sequence[int]], str] | None = None


class Distance(ABC):
    """A distance between the model's prediction and the target. Selected in the YAML by `class_path`.

    Its settings are attributes with plain data.
    """

    version = 1
    """Part of the cache key. Increment it with every code change that changes a value."""

    is_rank_based: bool = False
    """Whether only the order of the values is meaningful, so that weightings use ranks."""

    needs_answers: bool = False
    """Whether free answers are needed, each a generation of at most the target's length."""

    def __repr__(self) -> str:
        return written(self)

    @property
    def sampling(self) -> Sampling | None:
        """How free answers are sampled; None if only the greedy answer is needed."""
        return None

    @property
    def name(self) -> str:
        """Name of the distance in tables."""
        return type(self).__name__

    @abstractmethod
    def measure(self, outputs: TargetPass) -> Tensor:
        """Measures B facts.

        Args:
            outputs: The forward pass.

        Returns:
            float `(B,)`.
        """


class PerTokenDistance(Distance):
    """A distance of single target tokens, of which a fact has the pooled one.

    Args:
        pooling: `mean` over the target tokens, or only the `first` or `last` token.
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

    @override
    def measure(self, outputs: TargetPass) -> Tensor:
        """Pools `token_distance` over each fact's target tokens, float `(B,)`."""
        return _pool(self.token_distance(outputs), outputs.row, outputs.num_facts, self.pooling)


class ExpectedEmbeddingDistance(PerTokenDistance):
    """1 − cos(Σ_v p(v) e_v, e_y): from the expected input embedding under the model to that of the target token.

    Our reading; the default. In [0, 2]; no pass of its own. Unlike an argmax, smooth in the model's probabilities.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sure, unsure = [0.0, -100.0], [0.0, 0.0]
        >>> outputs = TargetPass(torch.tensor([sure, unsure]), torch.zeros(2, 2), torch.tensor([0, 0]),
        ...     torch.tensor([0, 1]), 2, embeddings, embeddings)
        >>> [round(one, 4) for one in ExpectedEmbeddingDistance().measure(outputs).tolist()]
        [0.0, 0.2929]
    """

    @override
    def token_distance(self, outputs: TargetPass) -> Tensor:
        embeddings = outputs.input_embeddings.float()
        if self.centered:
            embeddings = embeddings - embeddings.mean(dim=0)
        expected = outputs.logits.float().softmax(dim=-1) @ embeddings
        return cosine_distance(expected, embeddings[outputs.targets])


class HiddenStateDistance(PerTokenDistance):
    """1 − cos(h, u_y): from the last hidden state that predicts the target token to the token's output embedding.

    Our reading. In [0, 2]; no pass of its own. Unlike the logit, it ignores the norms of both vectors.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> hidden = torch.tensor([[7.0, 0.0], [0.0, 7.0], [-7.0, 0.0]])
        >>> outputs = TargetPass(torch.zeros(3, 2), hidden, torch.tensor([0, 0, 0]), torch.arange(3), 3,
        ...     embeddings, embeddings)
        >>> HiddenStateDistance().measure(outputs).tolist()
        [0.0, 1.0, 2.0]
    """

    @override
    def token_distance(self, outputs: TargetPass) -> Tensor:
        if outputs.hidden is None:
            raise InputError(
                "HiddenStateDistance needs the hidden states that the output embeddings project, and this model does "
                "not call them on one row of positions per fact. Use another distance, for example Surprisal."
            )
        table = outputs.output_embeddings
        embedded = table[outputs.targets].float() - _center(table, self.centered)
        return cosine_distance(outputs.hidden.float(), embedded)


class AnswerDistance(Distance):
    """A distance between the model's free answer and the target.

    An answer is at most as long as the target and ends at the first end token. An empty answer has distance 1: it has
    no direction. With `num_samples` the distance is the mean (1/n) Σ_s d(a_s, y) over n answers sampled at
    `temperature`, instead of the greedy answer's distance. The samples depend on `seed` and the prompt alone. Cost: the
    greedy answer is generated anyway, to find known facts; each sample is one more generation.

    Args:
        num_samples: n; 0: the greedy answer.
        temperature: Temperature of the samples, > 0.
        seed: Seed of the samples.

    Raises:
        InputError: If a setting is out of its range.
    """

    needs_answers = True

    def __init__(self, num_samples: int = 0, temperature: float = 0.5, seed: int = 0) -> None:
        if num_samples < 0:
            raise InputError(f"`num_samples` must be at least 0 (the greedy answer), got {num_samples}")
        Sampling(max(num_samples, 1), temperature, seed)  # checks the rest
        self.num_samples = num_samples
        self.temperature = temperature
        self.seed = seed

    @property
    @override
    def sampling(self) -> Sampling | None:
        return Sampling(self.num_samples, self.temperature, self.seed) if self.num_samples else None

    @abstractmethod
    def answer_distance(self, answers: list[list[int]], outputs: TargetPass) -> Tensor:
        """Distance of one answer per fact to the fact's target, float `(B,)` in [0, 2].

        Args:
            answers: The ids of each fact's answer.
            outputs: The forward pass.
        """

    @override
    def measure(self, outputs: TargetPass) -> Tensor:
        """Mean of `answer_distance` over each fact's answers, float `(B,)` in [0, 2]."""
        if self.sampling is not None:
            rounds = [list(answers) for answers in zip(*outputs.samples[self.sampling], strict=True)]
        elif outputs.answers is not None:
            rounds = [outputs.answers]
        else:
            raise ValueError(f"{self.name} needs `answers` in the outputs")
        return torch.stack([self.answer_distance(answers, outputs) for answers in rounds]).mean(dim=0)


class ResponseDistance(AnswerDistance):
    """1 − cos(mean embedding of the answer, mean embedding of the target): the literal reading. In [0, 2].

    Range and cost: see `AnswerDistance`. Source: our reading of Wang & Li 2024.

    Args:
        centered: Whether the mean embedding of the vocabulary is subtracted first.
        num_samples: Number of sampled answers to average over; 0: the greedy answer.
        temperature: Temperature of the samples, > 0.
        seed: Seed of the samples.

    Raises:
        InputError: If a setting is out of its range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> outputs = TargetPass(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([0, 0]), torch.tensor([0, 1]), 2,
        ...     embeddings, embeddings, answers=[[0], [1]])
        >>> ResponseDistance().measure(outputs).tolist()
        [0.0, 1.0]
    """

    def __init__(self, centered: bool = False, num_samples: int = 0, temperature: float = 0.5, seed: int = 0) -> None:
        super().__init__(num_samples, temperature, seed)
        self.centered = centered

    @override
    def answer_distance(self, answers: list[list[int]], outputs: TargetPass) -> Tensor:
        table = outputs.input_embeddings
        center = _center(table, self.centered)
        target = _pool(table[outputs.targets].float() - center, outputs.row, outputs.num_facts, "mean")
        answer = [
            (table[torch.tensor(ids, device=table.device)].float() - center).mean(dim=0)
            if ids
            else torch.zeros_like(center)
            for ids in answers
        ]
        return cosine_distance(torch.stack(answer), target)


class Surprisal(Distance):
    """Mean negative log-likelihood of the target, in nats per token: [0, ∞).

    Not a semantic distance, but the baseline for semantic distances. Filters use its values, weightings its ranks.
    No pass of its own.

    Example:
        >>> outputs = TargetPass(torch.zeros(1, 4), torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), 1,
        ...     torch.zeros(4, 2), torch.zeros(4, 2))
        >>> round(Surprisal().measure(outputs).item(), 4)  # ln 4: all four tokens are equally likely
        1.3863
    """

    is_rank_based = True

    @override
    def measure(self, outputs: TargetPass) -> Tensor:
        nll = F.cross_entropy(outputs.logits.float(), outputs.targets, reduction="none")
        return _pool(nll, outputs.row, outputs.num_facts, "mean")


def _center(table: Tensor, centered: bool) -> Tensor:
    """The vector to subtract from token embeddings, float32 `(H,)`. Does not copy a bfloat16 table to float32."""
    if centered:
        return table.mean(dim=0, dtype=torch.float32)
    return torch.zeros(table.shape[1], device=table.device)


def cosine_distance(left: Tensor, right: Tensor) -> Tensor:
    """1 − cosine along the last dimension, clamped to [0, 2] against rounding; 1 where either vector is zero.

    Args:
        left: float `(..., H)`.
        right: float `(..., H)`.
    """
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
