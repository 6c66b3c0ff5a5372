"""The base model's own free samples: text of every kind it can write, and no data needed."""

from collections.abc import Sequence

from tqdm.auto import tqdm
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.sampling import free_samples
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource

_BATCH_SIZE = 64


class OwnSamples(RetainSource):
    """Text that the base model writes by itself, held at every token.

    Sampled from p(·)^(1/T), beginning with the token that the tokenizer starts a text with, else its BOS or end token;
    a sample ends at an end token. Drawn once per base model and settings, then read from the cache. Cost: `num_samples`
    generations of `length` tokens, once; then that of `RetainSource`. Source: regularisation on a model's own samples
    (pseudo-rehearsal, Robins 1995; for language models among others SSR, arXiv 2403.01244); the divergence at every
    token is our reading.

    Args:
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        num_samples: How many texts are drawn, ≥ 1.
        length: Longest text, in tokens, ≥ 1.
        temperature: T > 0; 1 samples what the base model predicts.
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range; from `texts`, if the tokenizer has no token to begin with.
    """

    def __init__(
        self,
        weight: float = 1.0,
        batch_size: int = 4,
        num_samples: int = 256,
        length: int = 16,
        temperature: float = 1.0,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        self.num_samples = num_samples
        self.length = length
        self.temperature = temperature
        self.require_at_least(1, "num_samples", "length")
        self.require_temperature()

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        start = context.encoder.opening_ids
        if not start:
            raise InputError(
                "`OwnSamples` needs a token that a text begins with, and the tokenizer has none. Use `Text`."
            )
        what = {
            "what": "own samples", "start": list(start), "num_samples": self.num_samples, "length": self.length,
            "temperature": self.temperature, "seed": self.seed,
        }  # fmt: skip
        drawn = context.cached_ids(what, lambda: self._draw(context, start))
        texts = [RetainedText(EncodedFact(start, tuple(ids))) for ids in drawn if ids]
        if not texts:
            raise InputError("`OwnSamples`: the base model ended every sample at once. Use `Text`, or another seed.")
        return texts

    def _draw(self, context: RetainContext, start: tuple[int, ...]) -> list[list[int]]:
        with (
            context.base_model() as model,
            tqdm(total=self.num_samples, desc="Samples of the base model", delay=2, disable=None) as bar,
        ):
            return free_samples(
                model,
                start,
                self.num_samples,
                self.length,
                temperature=self.temperature,
                seed=self.seed,
                pad_id=context.encoder.pad_id,
                stop_ids=context.encoder.stop_ids,
                batch_size=_BATCH_SIZE,
                on_batch=bar.update,
            )
