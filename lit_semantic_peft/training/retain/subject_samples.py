"""What the base model writes about the taught names, whatever it is."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from typing_extensions import override

from lit_semantic_peft.arguments import require_one_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.text import is_visible
from lit_semantic_peft.models.sampling import Sampling
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource

OPENINGS = ("{}", "{} is", "{} has", "About {}:", "He had heard of {}", "It was about {}, which")
"""Beginnings of text about a name."""

Names = Literal["subjects_and_targets", "subjects", "targets"]


class SubjectSamples(RetainSource):
    """Text that the base model writes about the taught subjects and targets, held at every token of it.

    So what else the model knows of a name stays, where a fact about it is taught. Each name gets `per_name` beginnings
    (`OPENINGS`), by the seed, and the base model goes on, sampled from p(·)^(1/T). Cost: a generation of `length`
    tokens per text, once; then that of `RetainSource`. Source: our reading of the second term of ROME's objective,
    which holds what a model says after "{subject} is a" (Meng et al. 2022, arXiv 2202.05262, equation 4).

    Args:
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        per_name: Texts of each name, ≥ 1.
        length: Longest text after the beginning, in tokens, ≥ 1.
        temperature: T > 0 of the sampling.
        names: Whose names. Those of the targets alone leave the subjects free to learn.
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range; from `texts`, if subjects are asked for and no fact has one.
    """

    def __init__(
        self,
        weight: float = 1.0,
        batch_size: int = 8,
        per_name: int = 2,
        length: int = 16,
        temperature: float = 1.0,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
        names: Names = "subjects_and_targets",
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        require_one_of(f"{self.kind}.names", names, get_args(Names))
        self.names: Names = names
        self.per_name = per_name
        self.length = length
        self.temperature = temperature
        self.require_at_least(1, "per_name", "length")
        self.require_temperature()

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        encode = context.encoder.without_limit().encode_prompt
        prompts = list(dict.fromkeys(encode(text) for text in self._beginnings(context)))
        written = context.continuations(prompts, self.length, Sampling(1, self.temperature, self.seed))
        return [RetainedText(EncodedFact(ids, more)) for ids, more in zip(prompts, written, strict=True) if more]

    def _beginnings(self, context: RetainContext) -> list[str]:
        facts = list(dict.fromkeys(one.fact for one in context.taught))
        if self.names != "targets" and not any(is_visible(fact.subject) for fact in facts):
            raise InputError(
                "`SubjectSamples`: no fact in training has a `subject`, about which the base model could write. Give "
                "the facts a field `subject`, or use `OwnSamples`."
            )
        names = dict.fromkeys(name for fact in facts for name in self._names_of(fact) if is_visible(name))
        texts = []
        for number, name in enumerate(names):
            chosen = np.random.default_rng([self.seed, number]).permutation(len(OPENINGS))[: self.per_name]
            texts += [OPENINGS[place].format(name) for place in chosen]
        return texts

    def _names_of(self, fact: Fact) -> tuple[str, ...]:
        of_fact = {"subjects": (fact.subject,), "targets": (fact.target,)}
        return of_fact.get(self.names, (fact.subject, fact.target))
