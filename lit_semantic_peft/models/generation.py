"""Free answers: greedy generation from the prompt alone, without teacher forcing."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lit_semantic_peft.models.base import num_positions
from lit_semantic_peft.models.fast_ways import fast_ways
from lit_semantic_peft.models.library_versions import cache_argument, refuse_misread_cache
from lit_semantic_peft.models.peft_traits import num_virtual_tokens, positions_taken, runs_adapter, traits_of_forward
from lit_semantic_peft.models.prompts import of_prompts
from lit_semantic_peft.tokens import PrefixTree


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    pad_id: int,
    stop_ids: Collection[int],
    batch_size: int = 32,
    on_batch: Callable[[int], object] | None = None,
    logits_processor: LogitsProcessor | None = None,
    num_prompt_tokens: Sequence[int] | None = None,
) -> list[list[int]]:
    """Greedy continuations, in batches of prompts of similar length, padded on the left.

    Where the self-check found that padding or the cache changes a model's logits, without it (`FastWays`).

    Args:
        model: A causal language model. Its training or evaluation mode is not changed.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer of each prompt, in tokens; fewer if the model has no positions for them.
        pad_id: Token id for padding; masked.
        stop_ids: Ids that end an answer; empty: no id does.
        batch_size: Prompts per batch.
        on_batch: Called after each batch with the number of prompts that it answered.
        logits_processor: Applied to the logits before the argmax; None leaves them unchanged.
        num_prompt_tokens: How many of a prompt's tokens are the prompt itself, before the begin of an answer; all of
            them where None. It matters to an adapter that is routed by prompts.

    Returns:
        The generated ids of each prompt, in order: up to and without the first of `stop_ids`, at most
        `max_new_tokens` of them.

    Raises:
        InputError: If the installed peft misreads the cache of the adapter (`refuse_misread_cache`).
    """
    refuse_misread_cache(model)
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    positions = _num_positions(model)
    max_new_tokens = _within(positions, prompts, max_new_tokens)
    ways = fast_ways(model)
    allow_padding = num_virtual_tokens(model) == 0 and ways.batched_answers and ways.cache
    for rows in _batches(prompts, max_new_tokens, batch_size, positions, allow_padding=allow_padding):
        input_ids, attention_mask = _pad_left([prompts[row] for row in rows], pad_id)
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        most = max(max_new_tokens[row] for row in rows)
        own = [prompts[row][: None if num_prompt_tokens is None else num_prompt_tokens[row]] for row in rows]
        if ways.cache:
            config = GenerationConfig(
                do_sample=False, max_new_tokens=most, eos_token_id=list(stop_ids) or None, pad_token_id=pad_id
            )
            with _without_own_settings(model), of_prompts(model, own):
                output = model.generate(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    generation_config=config,
                    logits_processor=[logits_processor] if logits_processor else None,
                )
        else:
            with of_prompts(model, own):
                output = _by_plain_passes(model, input_ids, most, stop_ids, logits_processor)
        for row, ids in zip(rows, output[:, input_ids.shape[1] :].tolist(), strict=True):
            answers[row] = list(takewhile(lambda token: token not in stop_ids, ids[: max_new_tokens[row]]))
        if on_batch is not None:
            on_batch(len(rows))
    return answers


def prompt_cache(model: PreTrainedModel | PeftModel) -> DynamicCache | None:
    """An empty cache for a pass over padded prompts, from which `greedy_continuations` can continue.

    Args:
        model: A causal language model.

    Returns:
        The cache. None if the model does not simply keep keys and values of every position (a sliding window, a
        recurrent state, virtual tokens), or does not accept `position_ids`, or the self-check found other logits
        with it.
    """
    if "prompt_cache" in traits_of_forward(model).cannot or not fast_ways(model).prompt_cache:
        return None
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if cache_argument(base) is None or "position_ids" not in inspect.signature(base.forward).parameters:
        return None
    cache = DynamicCache(config=base.config)
    # Exactly this type: its subclasses keep fewer positions.
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


@torch.no_grad()
def greedy_continuations(
    model: PreTrainedModel | PeftModel,
    cache: DynamicCache,
    cache_rows: Sequence[int],
    beginnings: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    stop_ids: Collection[int],
    logits_processor: LogitsProcessor | None = None,
    num_prompt_tokens: Sequence[int] | None = None,
    tree: PrefixTree | None = None,
) -> list[list[int]]:
    """Greedy continuations of texts whose tokens, except the last, are in the cache. Finished texts leave the batch.

    Args:
        model: A causal language model. Its training or evaluation mode is not changed.
        cache: Keys and values of a pass over rows padded on the right. The row of a text begins with all tokens of the
            text except the last. The cache is modified: do not use it again.
        cache_rows: The row of each text in that pass.
        beginnings: Token ids of each text, at least one text.
        max_new_tokens: Longest continuation of each text, at least 1; fewer if the model has no positions for it.
        stop_ids: Ids that end a continuation; empty: no id does.
        logits_processor: Applied to the logits before the argmax; None leaves them unchanged.
        num_prompt_tokens: As in `greedy_answers`, of each text.
        tree: The tree that ran in place of the rows.

    Returns:
        The generated ids of each text, equal to those of `greedy_answers` for the same beginnings.
    """
    device = next(model.parameters()).device
    positions = torch.tensor([len(ids) - 1 for ids in beginnings], device=device)
    mask = _move_to_the_right(cache, torch.tensor(cache_rows, device=device), positions, tree)
    tokens = torch.tensor([ids[-1] for ids in beginnings], device=device)
    max_new_tokens = _within(_num_positions(model), beginnings, max_new_tokens)
    answers: list[list[int]] = [[] for _ in beginnings]
    running = list(range(len(beginnings)))
    own = [ids[: None if num_prompt_tokens is None else num_prompt_tokens[text]] for text, ids in enumerate(beginnings)]
    cache_name = cache_argument(model)
    assert cache_name is not None, "`prompt_cache` gives no cache to such a model"
    while running:
        mask = F.pad(mask, (0, 1), value=1)
        with of_prompts(model, [own[text] for text in running]):
            output = model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=positions[:, None],
                use_cache=True,
                **{cache_name: cache},
            )
        scores = output.logits[:, -1]
        if logits_processor is not None:
            texts = [(*beginnings[text], *answers[text]) for text in running]
            scores = logits_processor(_pad_left(texts, 0)[0].to(device), scores)
        tokens, positions = scores.argmax(dim=-1), positions + 1
        going_on = []
        for place, (text, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
            if token not in stop_ids:
                answers[text].append(token)
                if len(answers[text]) < max_new_tokens[text]:
                    going_on.append(place)
        if len(going_on) < len(running):
            running = [running[place] for place in going_on]
            kept = torch.tensor(going_on, dtype=torch.long, device=device)
            cache.batch_select_indices(kept)
            mask, tokens, positions = mask[kept], tokens[kept], positions[kept]
    return answers


def _by_plain_passes(
    model: PreTrainedModel | PeftModel,
    input_ids: Tensor,
    max_new_tokens: int,
    stop_ids: Collection[int],
    logits_processor: LogitsProcessor | None,
) -> Tensor:
    """The rows with what a forward pass over all of the text gives next, again and again; as `generate` returns them.

    Args:
        model: A causal language model.
        input_ids: int64 `(B, T)`, without padding.
        max_new_tokens: Most tokens to add.
        stop_ids: Ids of which each row has one when the loop ends early.
        logits_processor: As in `greedy_answers`.
    """
    prompt_length = input_ids.shape[1]
    ends = torch.tensor(sorted(stop_ids), dtype=torch.long, device=input_ids.device)
    for _ in range(max_new_tokens):
        output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
        scores = output.logits[:, -1].float()
        if logits_processor is not None:
            scores = logits_processor(input_ids, scores)
        input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
        if torch.isin(input_ids[:, prompt_length:], ends).any(dim=1).all():
            break
    return input_ids


def _move_to_the_right(cache: DynamicCache, rows: Tensor, lengths: Tensor, tree: PrefixTree | None) -> Tensor:
    """Keeps the first `lengths` positions of the given rows of a cache, padded on the left; returns their mask."""
    longest = int(lengths.max())
    source = torch.arange(longest, device=lengths.device) - (longest - lengths)[:, None]
    position = source.clamp(min=0)
    if tree is None:
        row = rows[:, None]
    else:
        node = tree.path[rows[:, None], position]
        row, position = node // tree.row.shape[1], node % tree.row.shape[1]
    for layer in cache.layers:
        layer.keys = layer.keys[row, :, position].transpose(1, 2)
        layer.values = layer.values[row, :, position].transpose(1, 2)
    return (source >= 0).long()


def _num_positions(model: PreTrainedModel | PeftModel) -> int:
    """Tokens that a model takes besides its virtual ones."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return (num_positions(base.config) or sys.maxsize) - (positions_taken(model) if runs_adapter(model) else 0)


def _within(positions: int, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> list[int]:
    """`max_new_tokens`, limited to the model's positions. An answer's last token needs none: it is never an input."""
    return [
        min(most, max(1, positions - len(prompt) + 1)) for prompt, most in zip(prompts, max_new_tokens, strict=True)
    ]


def _batches(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    batch_size: int,
    positions: int,
    *,
    allow_padding: bool,
) -> Iterator[list[int]]:
    """Row numbers of each batch.

    Virtual tokens precede the padding, and peft counts positions through it: a padded prompt would be farther from
    them than in training. So prompt- and p-tuning get batches of equally long prompts. All rows are generated until the
    longest answer of the batch is done, so the longest prompt must leave positions for that many tokens.
    """
    # Longest answers first, so that the rows of a batch stop together; then by prompt length, for little padding.
    order = sorted(range(len(prompts)), key=lambda row: (-max_new_tokens[row], -len(prompts[row]), row))
    groups = [order]
    if not allow_padding:
        lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)
        groups = [[row for row in order if len(prompts[row]) == length] for length in lengths]
    for group in groups:
        batch: list[int] = []
        longest = 0
        for row in group:
            longest = max(longest, len(prompts[row]))
            if len(batch) == batch_size or (batch and longest + max_new_tokens[batch[0]] - 1 > positions):
                yield batch
                batch, longest = [], len(prompts[row])
            batch.append(row)
        if batch:
            yield batch


@contextmanager
def _without_own_settings(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Hides a model's own generation settings (repetition penalty, end tokens), which transformers uses as defaults."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for number, prompt in enumerate(prompts):
        input_ids[number, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[number, longest - len(prompt) :] = 1
    return input_ids, attention_mask
