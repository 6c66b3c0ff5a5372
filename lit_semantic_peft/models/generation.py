"""Free answers: what a model says when nobody shows it the target."""

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    pad_id: int,
    eos_id: int | None,
    batch_size: int = 32,
    on_batch: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Greedy continuations, in batches of prompts of similar length, padded on the left.

    Args:
        model: A causal language model; evaluated in the mode it is in.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer of each prompt, in tokens.
        pad_id: Token id for padding; masked.
        eos_id: Where an answer ends; None for never.
        batch_size: Prompts that run together.
        on_batch: Called after each batch with the number of prompts that it answered.

    Returns:
        For each prompt the generated ids, in order: up to and without the first end token, at most
        `max_new_tokens` of them.
    """
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    # Longest answers first, so that a batch stops together; then by prompt length, so that little is padding.
    order = sorted(range(len(prompts)), key=lambda row: (-max_new_tokens[row], -len(prompts[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, attention_mask = _pad_left([prompts[row] for row in rows], pad_id)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(max_new_tokens[row] for row in rows),
            eos_token_id=eos_id,
            pad_token_id=pad_id,
        )
        output = model.generate(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), generation_config=config
        )
        for row, ids in zip(rows, output[:, input_ids.shape[1] :].tolist(), strict=True):
            ids = ids[: max_new_tokens[row]]
            answers[row] = ids[: ids.index(eos_id)] if eos_id in ids else ids
        if on_batch is not None:
            on_batch(len(rows))
    return answers


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for number, prompt in enumerate(prompts):
        input_ids[number, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[number, longest - len(prompt) :] = 1
    return input_ids, attention_mask
