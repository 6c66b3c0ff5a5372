"""Drops near-duplicates and contradictions of kept facts."""

from typing import Literal, get_args

import numpy as np
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.encoders import TextEmbedding
from lit_semantic_peft.semantics.features import in_order_of_ids
from lit_semantic_peft.semantics.filters import FactFilter, Selection
from lit_semantic_peft.semantics.table import FloatArray, ScoredFacts

Drops = Literal["near_duplicate", "contradiction"]

BLOCK = 2048
"""Facts that are compared at once."""
LEADING = (31, 63, 127, 255)
"""Numbers of coordinates to choose from for the bound; one more has the remaining length."""
_SAMPLE = 1024  # facts whose pairs decide which number is used
_PER_CANDIDATE = 20_000  # cost of checking a candidate pair, in multiplications of the bound
_SLACK = 1e-4  # tolerance of the bound, in float32


class RedundancyFilter(FactFilter):
    """Drops near-duplicates (reason `near_duplicate`) and contradictions (reason `contradiction`) of kept facts.

    Facts are visited from near to far, equal distances by `fact_id`. Suppose the cosine of a fact's prompt with that of
    a kept fact is at least `prompt_similarity`. If the cosine of their targets is at least `target_similarity`, the
    fact is a near-duplicate, else a contradiction. So the nearest fact of each group is kept, the one closest to the
    model's own prediction. Prompts and targets are embedded by `TextEmbedding`. Source: ours.

    With the base model's own embeddings word order does not matter. So prompts that use the same words for opposite
    directions of a relation look the same; a sentence encoder can distinguish more.

    Exact: a bound on the cosine from the leading principal coordinates rules out nearly all pairs. The bound is still
    computed for every pair, so time grows with the square of the number of kept facts. Measured once each for 10⁵ facts
    on 2 cores, H = 576, defaults: 28 s for real and made-up facts of which 78 % are kept, 16 s for clusters, 19 s for
    random directions; a busy machine takes longer. Cost: no pass over the model; with an encoder, one pass of it per
    text.

    Args:
        prompt_similarity: Smallest cosine of prompts that ask the same, in (0, 1].
        target_similarity: Smallest cosine of targets that answer the same, in (0, 1].
        drops: Kinds to drop; None: both. A kind that is not named is kept.
        encoder: As `TextEmbedding` takes it; None for the base model's own embeddings.

    Raises:
        InputError: If a setting is out of its range; from `select`, if the encoder cannot be loaded.

    Example:
        >>> prompt = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> target = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> facts = ScoredFacts(tuple("abcd"), ("",) * 4, np.zeros(4), np.zeros(4), np.zeros(4, dtype=bool),
        ...     measure=lambda feature, fact_id: np.stack([prompt, target], axis=1))
        >>> RedundancyFilter().select(facts).reason
        (None, 'near_duplicate', 'contradiction', None)
    """

    def __init__(
        self,
        prompt_similarity: float = 0.97,
        target_similarity: float = 0.9,
        drops: list[Drops] | None = None,
        encoder: str | None = None,
    ) -> None:
        for name, value in (("prompt_similarity", prompt_similarity), ("target_similarity", target_similarity)):
            if not 0 < value <= 1:
                raise InputError(f"`{name}` must be a cosine in (0, 1], got {value!r}")
        self.drops: tuple[Drops, ...] = get_args(Drops) if drops is None else tuple(drops)
        if not self.drops or set(self.drops) - set(get_args(Drops)):
            raise InputError(f"`drops` must name one or both of {', '.join(get_args(Drops))}, got {drops!r}")
        self.prompt_similarity = prompt_similarity
        self.target_similarity = target_similarity
        self.embedding = TextEmbedding(encoder)

    @property
    def encoder(self) -> str | None:
        """The sentence encoder; None for the base model's own embeddings."""
        return self.embedding.encoder

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        reason: list[str | None] = [None] * len(facts)
        if len(facts) > 1:
            by_id = in_order_of_ids(facts.fact_id)
            order = by_id[np.argsort(facts.distance[by_id], kind="stable")]
            embedding = facts.feature(self.embedding)[order]
            for row, why in zip(order, self._reasons(embedding[:, 0], embedding[:, 1]), strict=True):
                reason[row] = why
        return Selection(np.array([why is None for why in reason], dtype=np.bool_), tuple(reason))

    def _reasons(self, prompt: FloatArray, target: FloatArray) -> list[str | None]:
        """Reason for dropping each fact, None for a kept one, in the order of the rows."""
        bound = _bounding_coordinates(prompt, self.prompt_similarity)
        kept: list[int] = []
        reasons: list[str | None] = []
        for start in range(0, len(prompt), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(prompt)))
            earlier = np.array(kept, dtype=np.intp)
            # Pairs within the block as well: which of its facts are kept is only decided one by one.
            candidates = [
                _may_reach(bound[rows], bound[earlier], self.prompt_similarity),
                _may_reach(bound[rows], bound[rows], self.prompt_similarity),
            ]
            for row in rows.tolist():
                at = row - start
                others = [*earlier[candidates[0].get(at, [])], *(start + other for other in candidates[1].get(at, []))]
                others = [other for other in others if other < row and (other < start or reasons[other] is None)]
                why = self._reason(prompt, target, row, np.array(others, dtype=np.intp)) if others else None
                reasons.append(why)
                if why is None:
                    kept.append(int(row))
        return reasons

    def _reason(
        self, prompt: FloatArray, target: FloatArray, row: int, others: np.ndarray[tuple[int], np.dtype[np.intp]]
    ) -> str | None:
        """Reason for dropping a fact, given the kept `others`; None to keep it."""
        others = others[prompt[others] @ prompt[row] >= self.prompt_similarity - 1e-9]
        if not len(others):
            return None
        is_same = target[others] @ target[row] >= self.target_similarity - 1e-9
        for why, is_met in (("near_duplicate", is_same.any()), ("contradiction", not is_same.all())):
            if is_met and why in self.drops:
                return why
        return None


def _bounding_coordinates(rows: FloatArray, similarity: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """A few coordinates whose inner products are upper bounds of those of the rows (Cauchy-Schwarz for the rest).

    Their number only affects speed: more coordinates cost more per pair and leave fewer candidate pairs.

    Args:
        rows: Unit vectors, float64 `(n, H)`.
        similarity: The cosine that a pair must reach.

    Returns:
        float32 `(n, c)`: the leading principal coordinates, and the norm of the rest.
    """
    vectors = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    sample = rows[:: -(-len(rows) // _SAMPLE)]

    def cost(num_leading: int) -> float:
        bound = _bounded(sample, vectors[:, :num_leading])
        return num_leading + _PER_CANDIDATE * float((bound @ bound.T >= similarity - _SLACK).mean())

    return _bounded(rows, vectors[:, : min(LEADING, key=cost)])


def _bounded(rows: FloatArray, vectors: FloatArray) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Coordinates along orthonormal `vectors`, `(H, c)`, and the norm of the rest."""
    leading = rows @ vectors
    rest = np.sqrt(np.clip(np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", leading, leading), 0, None))
    return np.concatenate([leading, rest[:, None]], axis=1).astype(np.float32)


def _may_reach(
    left: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    right: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    similarity: float,
) -> dict[int, list[int]]:
    """For each row of `left`, the rows of `right` whose cosine with it may reach `similarity`, if any."""
    found: dict[int, list[int]] = {}
    for start in range(0, len(right), BLOCK):
        reaches = left @ right[start : start + BLOCK].T >= similarity - _SLACK
        for place in np.flatnonzero(reaches).tolist():  # many times faster than two-dimensional `nonzero`
            row, column = divmod(place, reaches.shape[1])
            found.setdefault(row, []).append(start + column)
    return found
