"""The base model's own words after a taught target, in the place of an end token."""

from collections.abc import Sequence

from typing_extensions import override

from lit_semantic_peft.models.sampling import Sampling
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource


class Continuations(RetainSource):
    """What the base model writes after prompt and target of the facts in training, held at every token of it.

    So the text goes on as the base model would have it, where an end token would be taught otherwise: it needs
    `data.encoding.append_eos: false`. A target after which the base model ends at once is left out. Cost: a generation
    of `length` tokens per text, once; then that of `RetainSource`. Source: ours.

    Args:
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        length: Longest continuation, in tokens, ≥ 1.
        temperature: T > 0 of the sampling.
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range.
    """

    def __init__(
        self,
        weight: float = 1.0,
        batch_size: int = 8,
        length: int = 8,
        temperature: float = 1.0,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        self.length = length
        self.temperature = temperature
        self.require_at_least(1, "length")
        self.require_temperature()

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        read = [one.encoded.prompt_ids + one.encoded.target_ids for one in context.taught]
        written = context.continuations(read, self.length, Sampling(1, self.temperature, self.seed))
        return [RetainedText(EncodedFact(ids, more)) for ids, more in zip(read, written, strict=True) if more]
