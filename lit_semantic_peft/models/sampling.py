"""Sampled answers that depend on prompt and seed alone: the same in any batch, in any order."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel
from typing_extensions import override

from lit_semantic_peft.arguments import require_seed
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.generation import greedy_answers


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        num_samples: Answers per prompt, ≥ 1.
        temperature: T > 0; logits are divided by it.
        seed: Another seed gives other answers.

    Raises:
        InputError: If a setting is out of its range.
    """

    num_samples: int
    temperature: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"`num_samples` must be at least 1, got {self.num_samples}")
        require_seed(self.seed)
        if not 0 < self.temperature < float("inf"):
            raise InputError(
                f"`temperature` must be a finite number above 0, got {self.temperature!r}. "
                "For the greedy answer ask for no samples."
            )


def sampled_answers(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    sampling: Sampling,
    *,
    pad_id: int,
    stop_ids: Collection[int],
    batch_size: int = 32,
) -> list[list[list[int]]]:
    """Samples answers from p(·)^(1/T), with random numbers of its own for each prompt.

    The argmax of logits/T plus Gumbel noise is a sample from softmax(logits/T) (the Gumbel-max trick). The noise comes
    from a generator that is seeded by the tokens so far. So neither the batch nor torch's global generator matters,
    and equal prompts get equal answers. Cost: `num_samples` generations per prompt.

    Args:
        model: A causal language model. Its training or evaluation mode is not changed.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer of each prompt, in tokens.
        sampling: Number, temperature and seed of the samples.
        pad_id: Token id for padding; masked.
        stop_ids: Ids that end an answer; empty: no id does.
        batch_size: Prompts per batch.

    Returns:
        The `num_samples` answers of each prompt, without the end token.
    """
    by_sample = [
        greedy_answers(
            model,
            prompts,
            max_new_tokens,
            pad_id=pad_id,
            stop_ids=stop_ids,
            batch_size=batch_size,
            logits_processor=_GumbelNoise(sampling.temperature, sampling.seed, number, pad_id),
        )
        for number in range(sampling.num_samples)
    ]
    return [list(answers) for answers in zip(*by_sample, strict=True)]


def free_samples(
    model: PreTrainedModel | PeftModel,
    opening: Sequence[int],
    num_samples: int,
    length: int,
    *,
    temperature: float,
    seed: int,
    pad_id: int,
    stop_ids: Collection[int],
    batch_size: int = 32,
    on_batch: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Samples of one opening, which run together; the batch does not matter, as in `sampled_answers`.

    Args:
        model: A causal language model. Its training or evaluation mode is not changed.
        opening: Token ids that every sample continues.
        num_samples: How many.
        length: Longest sample, in tokens.
        temperature: T > 0; logits are divided by it.
        seed: Another seed gives other samples.
        pad_id: Token id for padding; masked.
        stop_ids: Ids that end a sample; empty: no id does.
        batch_size: Samples per batch.
        on_batch: Called after each batch with the number of its samples.

    Returns:
        The samples, without opening and end token.
    """
    samples: list[list[int]] = []
    for start in range(0, num_samples, batch_size):
        size = min(batch_size, num_samples - start)
        samples += greedy_answers(
            model,
            [opening] * size,
            [length] * size,
            pad_id=pad_id,
            stop_ids=stop_ids,
            batch_size=size,
            on_batch=on_batch,
            logits_processor=_GumbelNoise(temperature, seed, range(start, start + size), pad_id),
        )
    return samples


class _GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds T · Gumbel noise, a function of the seed, the number of the sample and the row's tokens so far."""

    def __init__(self, temperature: float, seed: int, number: int | Sequence[int], pad_id: int) -> None:
        self._temperature = temperature
        self._seed = seed
        self._number = number  # of all rows, or of each
        self._pad_id = pad_id

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = input_ids.tolist()
        numbers = [self._number] * len(rows) if isinstance(self._number, int) else self._number
        noise = [self._noise(ids, number, scores.shape[-1]) for ids, number in zip(rows, numbers, strict=True)]
        return scores.float() + self._temperature * torch.stack(noise).to(scores.device)

    def _noise(self, ids: list[int], number: int, size: int) -> Tensor:
        start = next((at for at, token in enumerate(ids) if token != self._pad_id), len(ids))
        text = f"{self._seed}:{number}:{ids[start:]}"
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(key)
        # Gumbel noise is −log of an exponential variable, which may be sampled as 0.
        return -torch.empty(size).exponential_(generator=generator).clamp(min=1e-30).log()
