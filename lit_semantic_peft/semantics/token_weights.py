"""Which target tokens count, and how: weights of single tokens beside the loss weight of their fact.

The loss of fact i becomes ℓ_i = (1/n_i) Σ_t c_t over its n_i target tokens, c_t what a weighting makes of the loss of
token t. The number of tokens stays the divisor, so that a token's part depends on no other token, and a step's loss on
neither its splitting nor its padding.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.arguments import written
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.distances import ExpectedEmbeddingDistance, PerTokenDistance, TargetPass
from lit_semantic_peft.semantics.shaping import require_plain
from lit_semantic_peft.semantics.weightings import MAX_DISTANCE, Weighting


class TokenWeighting(ABC):
    """From the losses of target tokens to what they contribute to the loss of their fact. Selected by `class_path`.

    Its settings are attributes with plain data.
    """

    reads_embeddings: bool = False
    """Whether it needs the base model's token embeddings."""

    def __repr__(self) -> str:
        return written(self)

    @abstractmethod
    def token_loss(self, nll: Tensor, outputs: TargetPass, is_end: Tensor) -> Tensor:
        """What each target token contributes.

        Args:
            nll: Negative log-likelihoods, float32 `(N,)`, nats, with a graph.
            outputs: The training step's forward pass at these tokens, with a graph.
            is_end: bool `(N,)`, whether a token is the end token behind the target.

        Returns:
            float32 `(N,)`, with a graph.
        """


class ConfidenceGate(TokenWeighting):
    """A token that already wins with p > τ counts nothing: c = 0, else ℓ.

    Wins: it is the model's most likely token. The gate is that of the model in training, so a token that is forgotten
    again counts again. Range of the weight: {0, 1}. Cost: no pass. Source: ours; a hard form of the focal loss (Lin et
    al. 2017, arXiv 1708.02002). Seen in trials that were not repeated with this code (SmolLM2-135M, 96 facts, one
    seed, τ = 0.9): recall, paraphrases and harm as without.

    Args:
        tau: τ in (0, 1].

    Raises:
        InputError: If `tau` is out of its range.
    """

    def __init__(self, tau: float = 0.9) -> None:
        if not 0 < tau <= 1:
            raise InputError(f"`tau` must be in (0, 1], got {tau!r}; 1 lets every token count.")
        self.tau = tau

    @override
    def token_loss(self, nll: Tensor, outputs: TargetPass, is_end: Tensor) -> Tensor:
        wins = outputs.logits.argmax(dim=-1) == outputs.targets
        return nll.masked_fill(wins & (nll.detach() < -math.log(self.tau)), 0.0)


class TokenDistance(TokenWeighting):
    """A token counts by its own distance from the model in training: c = w(d_t) · ℓ.

    w is the raw weight of a weighting of facts, applied to one token: `Proximity` lets near tokens count more,
    `Remoteness` far ones, `Band` those in between; one by likelihood (`Focal`, `MediumConfidence`) gets ℓ instead of
    d. The end token has no distance and keeps weight 1. Range of the weight: that of the raw weight. Cost: no pass; the
    distance of the step's target tokens. Source: ours; by likelihood the token weights of the focal loss (arXiv
    1708.02002) and InfoSFT (arXiv 2605.14967). Seen in trials that were not repeated with this code (SmolLM2-135M,
    96 facts, one seed): recall, paraphrases and harm about as without.

    Args:
        weighting: From distance to weight.
        distance: Of a single token; `ExpectedEmbeddingDistance` where None.

    Raises:
        InputError: If the weighting is `Online` or `Scheduled`, or needs all facts at once (`FLOW` without `tau`).

    Example:
        >>> from lit_semantic_peft.semantics import Proximity
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> near, far = [50.0, -50.0], [-50.0, 50.0]
        >>> outputs = TargetPass(torch.tensor([near, far]), None, torch.zeros(2, dtype=torch.long), torch.zeros(2), 1,
        ...     embeddings, embeddings)
        >>> TokenDistance(Proximity(1.0)).token_loss(torch.ones(2), outputs, torch.zeros(2, dtype=torch.bool)).tolist()
        [1.0, 0.5]
    """

    def __init__(self, weighting: Weighting, distance: PerTokenDistance | None = None) -> None:
        require_plain("TokenDistance", weighting)
        if weighting.needs_all_facts:
            raise InputError("FLOW inside TokenDistance needs a fixed `tau`: the median depends on the step.")
        self.weighting = weighting
        self.distance = distance or ExpectedEmbeddingDistance()
        self.reads_embeddings = not weighting.needs_nll

    @override
    def token_loss(self, nll: Tensor, outputs: TargetPass, is_end: Tensor) -> Tensor:
        with torch.no_grad():
            measured = nll if self.weighting.needs_nll else self.distance.token_distance(outputs)
            limit = math.inf if self.weighting.needs_nll else MAX_DISTANCE
            weight = self.weighting.raw(measured.float().clamp(0.0, limit))
        return nll * weight.masked_fill(is_end, 1.0)


class SemanticDistanceTerm(TokenWeighting):
    """The semantic distance as a term of the loss: c = ℓ + λ · (1 − cos(Σ_v p(v) e_v, e_y)).

    The expected input embedding under the model is drawn to that of the target token, so that likely wrong tokens cost
    less if they are near in meaning. The gradient goes through p alone: the embeddings stay as they are. The end token
    has no such term. Range of the term: [0, 2λ]. Cost: no pass; one product of N × V probabilities with the embedding
    table, forward and backward. Source: our reading of an objective that attends to semantic distance; the expected
    embedding as in `ExpectedEmbeddingDistance`. Seen in trials that were not repeated with this code (SmolLM2-135M,
    96 facts, one seed, λ = 1 and 4): recall, paraphrases and harm about as without.

    Args:
        weight: λ > 0.
        centered: As in `ExpectedEmbeddingDistance`.

    Raises:
        InputError: If `weight` is not a finite number above 0.
    """

    reads_embeddings = True

    def __init__(self, weight: float = 1.0, centered: bool = False) -> None:
        if not 0 < weight < math.inf:
            raise InputError(f"`weight` must be a finite number above 0, got {weight!r}. For no term leave it out.")
        self.weight = weight
        self.centered = centered

    @override
    def token_loss(self, nll: Tensor, outputs: TargetPass, is_end: Tensor) -> Tensor:
        distance = ExpectedEmbeddingDistance(centered=self.centered).token_distance(outputs)
        return nll + self.weight * distance.masked_fill(is_end, 0.0)
