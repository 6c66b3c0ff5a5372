"""The taught prompts about other subjects: whatever the base model says of them."""

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from lit_semantic_peft.data.builtin_known import builtin_facts, prompts_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource


class Neighbours(RetainSource):
    """Prompts of the facts in training with another subject, held along the base model's own greedy answer.

    Subjects come from built-in facts that the evaluation does not ask, of the same relation where there are such; a
    prompt that the evaluation asks is left out. Facts need a `subject` that stands in the prompt. On SmolLM2-135M this
    costs recall in other wordings: the prompts are near the taught ones, and the answers are often wrong. Cost: a
    greedy generation of `length` tokens per text, once; then that of `RetainSource`. Source: ours, after the
    neighbourhood prompts of CounterFact (Meng et al. 2022, arXiv 2202.05262).

    Args:
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        per_fact: Prompts made of each fact, ≥ 1; equal ones are held once.
        length: Longest answer, in tokens, ≥ 1.
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range; from `texts`, if no fact has a subject that stands in its prompt.
    """

    def __init__(
        self,
        weight: float = 1.0,
        batch_size: int = 8,
        per_fact: int = 2,
        length: int = 4,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        self.per_fact = per_fact
        self.length = length
        self.require_at_least(1, "per_fact", "length")

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        encode = context.encoder.without_limit().encode_prompt
        prompts = [encode(prompt) for prompt in self._prompts(context)]
        answers = context.continuations(prompts, self.length)
        return [RetainedText(EncodedFact(ids, more)) for ids, more in zip(prompts, answers, strict=True) if more]

    def _prompts(self, context: RetainContext) -> list[str]:
        facts = [fact for fact in dict.fromkeys(one.fact for one in context.taught) if _has_subject(fact)]
        if not facts:
            raise InputError(
                "`Neighbours`: no fact in training has a `subject` that stands in its prompt, so there is nothing to "
                "put another one in the place of. Give the facts a field `subject`, or use `KnownFacts`."
            )
        pool = builtin_facts(context.prepared.facts, context.data_seed).retainable
        asked = {prompt for fact in context.prepared.facts for prompt in prompts_of(fact)}
        prompts: dict[str, None] = {}
        for number, fact in enumerate(facts):
            subjects = sorted(
                {one.subject for one in pool if one.relation == fact.relation} or {one.subject for one in pool}
            )
            chosen = np.random.default_rng([self.seed, number]).permutation(len(subjects))[: self.per_fact]
            about_others = (fact.prompt.replace(fact.subject, subjects[place]) for place in chosen)
            prompts.update(dict.fromkeys(prompt for prompt in about_others if prompt not in asked))
        return list(prompts)


def _has_subject(fact: Fact) -> bool:
    return bool(fact.subject) and fact.subject in fact.prompt
