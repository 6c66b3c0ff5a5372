"""Facts that the base model answers rightly and with confidence: the run's own, else built-in ones."""

import logging
import math
from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.data.builtin_known import builtin_facts, prompts_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.tokens import EncodedFact, FactEncoder
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource

logger = logging.getLogger(__name__)

_MOST_OF_OWN = 0.5
"""Share of the run's own known facts that is retained at most: the others show what training did to such facts."""


class KnownFacts(RetainSource):
    """Facts that the base model knows, held at the tokens of their targets.

    Known: the base model answers with the target, whose tokens have a geometric mean probability of at least
    `min_probability`. Of the run's own facts, those that are not trained and share no subject with a trained one, at
    most half of them; where these are fewer than `num_facts`, built-in facts about other subjects beside them. The
    evaluation asks none of them. Cost: a forward pass over the built-in facts that are looked at, once, then read from
    the cache; then that of `RetainSource`. A base model that knows none retains none, with a warning.

    Args:
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        num_facts: How many are retained, ≥ 1; fewer where there are fewer.
        min_probability: Least confidence, in [0, 1].
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range.
    """

    def __init__(
        self,
        weight: float = 1.0,
        batch_size: int = 5,
        num_facts: int = 64,
        min_probability: float = 0.2,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        self.num_facts = num_facts
        self.min_probability = min_probability
        self.require_at_least(1, "num_facts")
        if not 0 <= min_probability <= 1:
            raise InputError(f"`{self.kind}.min_probability` must be in [0, 1], got {min_probability}")

    @property
    def max_nll(self) -> float:
        """Least confidence as a loss, nats per token."""
        return -math.log(self.min_probability) if self.min_probability else math.inf

    @override
    def rows(self, prepared: PreparedFacts) -> list[int]:
        trained = [fact for fact, is_trained in zip(prepared.facts, prepared.is_trained, strict=True) if is_trained]
        subjects = {fact.subject for fact in trained} - {None, ""}
        asked = {prompt for fact in prepared.facts for prompt in prompts_of(fact) - {fact.prompt}}
        is_known = prepared.scored.is_known & ~prepared.is_trained & (prepared.scored.base_nll <= self.max_nll)
        candidates = [
            row
            for row in np.flatnonzero(is_known).tolist()
            if (fact := prepared.facts[row]).split == "inject"
            and fact.subject not in subjects
            and fact.prompt not in asked
        ]
        most = min(self.num_facts, math.ceil(_MOST_OF_OWN * len(candidates)))
        return sorted(np.random.default_rng(self.seed).permutation(candidates)[:most].astype(int).tolist())

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        prepared = context.prepared
        own = [prepared.encoded[row] for row in self.rows(prepared)]
        pool = builtin_facts(prepared.facts, context.data_seed).retainable
        known = own + self._builtin(context, pool, self.num_facts - len(own))
        if not known:
            logger.warning(
                "`KnownFacts` retains nothing: the base model knows none of %d built-in facts with a probability of at "
                "least %g",
                len(pool),
                self.min_probability,
            )
        return [RetainedText(EncodedFact(one.prompt_ids, one.target_ids)) for one in known]

    def _builtin(self, context: RetainContext, pool: Sequence[Fact], most: int) -> list[EncodedFact]:
        """The first known facts of a pool, which is looked at part by part until there are enough."""
        if most <= 0:
            return []
        encoded = _tokenizable(context.encoder.without_limit(), pool)
        what = {
            "what": "known facts", "facts": [[list(one.prompt_ids), list(one.target_ids)] for one in encoded],
            "most": most, "max_nll": self.max_nll,
        }  # fmt: skip
        (places,) = context.cached_ids(what, lambda: [self._known(context, encoded, most)])
        return [encoded[place] for place in places]

    def _known(self, context: RetainContext, encoded: Sequence[EncodedFact], most: int) -> list[int]:
        known: list[int] = []
        size = 4 * context.batch_size
        with context.base_model() as model:
            for start in range(0, len(encoded), size):
                for places, batch in context.batches(encoded[start : start + size], "Facts that the base model knows"):
                    scores = score_targets(model, batch)
                    is_known = (scores.is_recalled & (scores.nll <= self.max_nll)).tolist()
                    known += [start + place for place, one in zip(places, is_known, strict=True) if one]
                if len(known) >= most:
                    break
        return sorted(known)[:most]


def _tokenizable(encoder: FactEncoder, facts: Sequence[Fact]) -> list[EncodedFact]:
    """The facts that this tokenizer can express."""
    encoded = []
    for fact in facts:
        try:
            encoded.append(encoder.encode(fact.prompt, fact.target, fact.joiner))
        except InputError:
            continue
    return encoded
