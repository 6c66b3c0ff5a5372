"""Asks a model whether the shortcuts of this package give its own numbers, by running it on two short texts.

The model's own numbers are those of plain forward passes over single texts, which training fits. Logits count as equal
if they differ by no more than a few times what rounding does to this model in its own dtype. That is measured: by the
place of a text among others in one batch, and by a change of its embeddings in their last digit.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import TypeAlias

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedModel
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base_files import first_line
from lit_semantic_peft.models.fast_ways import FastWays, set_fast_ways
from lit_semantic_peft.models.frozen_layers import FrozenLayers, frozen_layers_obstacle
from lit_semantic_peft.models.generation import greedy_answers, greedy_continuations, prompt_cache
from lit_semantic_peft.models.gradient_check import checked_gradients, moved_adapter, say_unmoved
from lit_semantic_peft.models.library_versions import cache_argument
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.objective import mean_per_fact, nll_of, target_logits
from lit_semantic_peft.models.peft_traits import (
    awakening_tokens,
    runs_adapter,
    trained_tokens,
    traits_of,
)
from lit_semantic_peft.models.tree_attention import prefix_tree_obstacle
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch, EncodedFact, FactEncoder, collate, prefix_tree

logger = logging.getLogger(__name__)

SELF_CHECK_VERSION = 4
"""Part of the key of cached verdicts. Increment it with every code change that may change a verdict."""

_TIMES_ROUNDING = 4
_NUM_TARGET_TOKENS = 2  # the second is generated from the cache that the first has extended
_TEXTS = (("Rain is", " a kind of water"), ("The capital of France is", " Paris on the Seine"))

Model: TypeAlias = PreTrainedModel | PeftModel
Logits = Mapping[tuple[int, ...], Tensor]
"""The logits `(V,)` that follow a text, by its ids."""


def check_rows(encoder: FactEncoder, model: Model) -> list[EncodedFact]:
    """Two texts of different length, for `self_check`.

    Args:
        encoder: How facts become tokens.
        model: What is checked. The prompts end with a token whose embedding its adapter trains, and with the tokens
            after which it begins, if there are such.
    """
    needed = (*(trained_tokens(model)[:1] if runs_adapter(model) else ()), *awakening_tokens(model))
    rows = []
    for prompt, answer in _TEXTS:
        answer_ids = encoder.tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows.append(EncodedFact((*encoder.encode_prompt(prompt), *needed), tuple(answer_ids[:_NUM_TARGET_TOKENS])))
    return rows


def self_check(model: Model, rows: Sequence[EncodedFact], pad_id: int, *, trains: bool = False) -> FastWays:
    """Finds which fast ways are right for a model, and notes them for it (`set_fast_ways`).

    Compared with plain forward passes over single texts: the logits and the loss of a padded batch (the loss with that
    of transformers), free answers from padded batches and from the cache, answers that continue a padded pass, reused
    frozen layers, and prefix trees. The model is left as it was: weights, buffers, gradients, modes, random number
    generators.

    Args:
        model: A causal language model, with or without an adapter, on the device where it shall run.
        rows: Two texts of different length.
        pad_id: Token id for padding.
        trains: Whether the adapter is about to be trained. Then every tensor that should have a gradient must have a
            finite one, and all is compared after a step of each tensor, as a new adapter often changes nothing.

    Returns:
        What may be used.

    Raises:
        InputError: If no way is right: naming what was compared, and by how much it differs.
    """
    batch = collate(rows, range(len(rows)), pad_id, with_end=False).to(next(model.parameters()).device)
    set_fast_ways(model, FastWays())
    with undisturbed(model), _buffers_restored(model):
        step = collate(rows[:1], [0], pad_id, with_end=False).to(batch.labels.device)
        with moved_adapter(model, step) if trains else nullcontext() as trained:
            ways = _right_ways(model, rows, batch, pad_id, trained)
    set_fast_ways(model, ways)
    return ways


@torch.no_grad()
def _right_ways(
    model: Model,
    rows: Sequence[EncodedFact],
    batch: Batch,
    pad_id: int,
    trained: Mapping[str, nn.Parameter] | None,
) -> FastWays:
    plain = _plain_passes(model, rows)
    cache = prompt_cache(model)
    keeping = {} if cache is None else {str(cache_argument(model)): cache, "use_cache": True}
    with torch.set_grad_enabled(trained is not None):
        logits, targets, _ = target_logits(model, batch, **keeping)
        losses = mean_per_fact(nll_of(logits, targets), batch.labels)
    if trained is not None:
        say_unmoved(trained, checked_gradients(model, trained, batch, losses))
        logits, losses = logits.detach(), losses.detach()
    padded = dict(zip(plain.logits, logits.float(), strict=True))
    plain.require(plain.difference(padded), "the logits of a padded batch of two texts")
    difference = plain.difference_of_losses(losses)
    if not difference <= plain.tolerance:  # some models leave it to the caller to shift the labels
        difference = min(difference, _plain_passes(model, rows, shift=1).difference_of_losses(losses))
    plain.require(difference, "the losses of a batch of two facts, and transformers' own losses,")
    ways = _right_answers(model, rows, plain, pad_id)
    if cache is not None:
        # One token: `generate` has shown what becomes of a cache that grows.
        first = replace(plain, logits={row.prompt_ids: plain.logits[row.prompt_ids] for row in rows})
        seen = _Transcript(rows, pad_id)
        with _counts_as_wrong("`prompt_cache`"):
            prompts, most = [row.prompt_ids for row in rows], [1] * len(rows)
            greedy_continuations(model, cache, range(len(rows)), prompts, most, stop_ids=(), logits_processor=seen)
        ways = replace(ways, prompt_cache=ways.cache and first.agrees(seen.logits))
    if isinstance(model, PeftModel) and not frozen_layers_obstacle(model):
        frozen = FrozenLayers(model, int(batch.attention_mask.sum()))
        reused = dict(zip(plain.logits, target_logits(model, batch, frozen=frozen)[0].float(), strict=True))
        ways = replace(ways, reuse_frozen_layers=plain.agrees(reused))
    return replace(ways, prefix_tree=_runs_trees(model, rows, plain, pad_id, trains=trained is not None))


def _runs_trees(model: Model, rows: Sequence[EncodedFact], plain: "_PlainPasses", pad_id: int, *, trains: bool) -> bool:
    """Whether a prefix tree of three texts, two of which begin alike, gives the logits of single texts.

    Where the adapter is about to be trained they run in training mode, so that dropout shows.
    """
    if prefix_tree_obstacle(model):
        return False
    branch = EncodedFact(rows[1].prompt_ids, rows[0].target_ids[::-1])
    rows = [*rows, branch]
    batch = collate(rows, range(len(rows)), pad_id, with_end=False).to(plain.device)
    tree = prefix_tree(batch)
    texts = [(*row.prompt_ids, *row.target_ids[:seen]) for row in rows for seen in range(row.num_target_tokens)]
    seen: dict[tuple[int, ...], Tensor] = {}
    with _counts_as_wrong("A prefix tree"), modes_restored(model):
        model.train(trains)
        seen.update(zip(texts, target_logits(model, batch, tree=tree)[0].float(), strict=True))
    return replace(plain, logits={**plain.logits, **_plain_pass(model, branch)[0]}).agrees(seen)


def _right_answers(model: Model, rows: Sequence[EncodedFact], plain: "_PlainPasses", pad_id: int) -> FastWays:
    """The fastest way to free answers that is right."""
    for ways in (FastWays(), FastWays(batched_answers=False), FastWays(batched_answers=False, cache=False)):
        if not ways.batched_answers and len(rows) == 2:  # two that are equally long share a batch
            twin = EncodedFact(rows[1].prompt_ids[::-1], rows[1].target_ids[::-1])
            rows = [*rows, twin]
            plain = replace(plain, logits={**plain.logits, **_plain_pass(model, twin)[0]})
        set_fast_ways(model, ways)
        seen = _Transcript(rows, pad_id)
        with _counts_as_wrong("`generate`"):
            greedy_answers(
                model,
                [row.prompt_ids for row in rows],
                [row.num_target_tokens for row in rows],
                pad_id=pad_id,
                stop_ids=(),
                logits_processor=seen,
            )
        if plain.agrees(seen.logits):
            return ways
    raise plain.refusal(plain.difference(seen.logits), "the logits of free answers")


@dataclass(frozen=True)
class _PlainPasses:
    """What plain forward passes over single texts give.

    Attributes:
        logits: At the places that predict a target token.
        losses: transformers' own loss of each text, nats per target token.
        tolerance: Largest root mean square over the vocabulary by which equal logits may differ.
    """

    logits: Logits
    losses: Tensor
    tolerance: float

    @property
    def device(self) -> torch.device:
        """Where they ran."""
        return self.losses.device

    def difference(self, seen: Logits) -> float:
        """The largest root mean square difference of the logits after a text; infinite where a text is missing."""
        if not seen.keys() >= self.logits.keys():
            return float("inf")
        return max(_difference(seen[text], logits) for text, logits in self.logits.items())

    def difference_of_losses(self, losses: Tensor) -> float:
        """The largest difference of two losses beyond what both are rounded to."""
        last_digits = _TIMES_ROUNDING * torch.finfo(losses.dtype).eps * self.losses.abs()
        return float(((losses - self.losses).abs() - last_digits).max())

    def agrees(self, seen: Logits) -> bool:
        return self.difference(seen) <= self.tolerance

    def require(self, difference: float, compared: str) -> None:
        if not difference <= self.tolerance:
            raise self.refusal(difference, compared)

    def refusal(self, difference: float, compared: str) -> InputError:
        return InputError(
            f"The self-check compared {compared} with plain forward passes over single texts: they differ by "
            f"{difference:.2g}, of which rounding explains {self.tolerance:.2g}. Its scores and its training would be "
            "wrong. Use another base model or adapter, or `--self_check false` to go on all the same."
        )


def _plain_passes(model: Model, rows: Sequence[EncodedFact], shift: int = 0) -> _PlainPasses:
    """Runs each text alone, with its labels; these are moved to the left by `shift`."""
    logits: dict[tuple[int, ...], Tensor] = {}
    losses = []
    for row in rows:
        of_row, loss = _plain_pass(model, row, shift)
        logits |= of_row
        losses.append(loss)
    return _PlainPasses(logits, torch.stack(losses), _TIMES_ROUNDING * _rounding(model, rows))


def _plain_pass(model: Model, row: EncodedFact, shift: int = 0) -> tuple[dict[tuple[int, ...], Tensor], Tensor]:
    ids, first = (*row.prompt_ids, *row.target_ids), len(row.prompt_ids)
    input_ids = torch.tensor([ids], device=next(model.parameters()).device)
    labels = input_ids.clone()
    labels[:, :first] = IGNORE_INDEX
    labels = F.pad(labels[:, shift:], (0, shift), value=IGNORE_INDEX)
    output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=labels, use_cache=False)
    logits = output.logits[0, -len(ids) :].float()
    loss = output.loss.float()
    if traits_of(model).has_own_loss:  # PEFT adds it where the adapter is switched off too
        loss = F.cross_entropy(logits[first - 1 : -1], input_ids[0, first:])
    return {ids[:end]: logits[end - 1] for end in range(first, len(ids))}, loss


def _rounding(model: Model, rows: Sequence[EncodedFact]) -> float:
    """The root mean square by which logits change where they should not, in one batch of six texts of equal length.

    At least their own last digit.
    """
    length = min(len(row) for row in rows)
    first, second = ((*row.prompt_ids, *row.target_ids)[:length] for row in rows)
    input_ids = torch.tensor([first, second, second, first, first, second], device=next(model.parameters()).device)

    def nudge(_: nn.Module, __: object, embedded: Tensor) -> Tensor | None:
        if embedded.shape[0] != len(input_ids):
            return None
        kind = embedded.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embedded.dtype
        last_digit = torch.full_like(embedded[4:], torch.finfo(dtype).eps)
        last_digit[..., ::2] *= -1
        return torch.cat([embedded[:4], embedded[4:] * (1 + last_digit)])

    handle = model.get_input_embeddings().register_forward_hook(nudge)
    try:
        output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
    finally:
        handle.remove()
    logits = output.logits[:, -length:].float()
    pairs = ((0, 3), (1, 2), (0, 4), (1, 5))
    last_digit = torch.finfo(output.logits.dtype).eps * _difference(logits, torch.zeros_like(logits))
    return max(last_digit, *(_difference(logits[left], logits[right]) for left, right in pairs))


def _difference(left: Tensor, right: Tensor) -> float:
    """The largest root mean square over the last dimension; what is not finite must be so on both sides."""
    if not torch.equal(left.isfinite(), right.isfinite()):
        return float("inf")
    squares = (left - right).nan_to_num(0.0, 0.0, 0.0).square()
    return float(squares.mean(dim=-1).sqrt().max())


class _Transcript(LogitsProcessor):  # type: ignore[misc]
    """Takes down the logits that follow each text, and makes the model go on with the given ones."""

    def __init__(self, rows: Sequence[EncodedFact], pad_id: int) -> None:
        self.logits: dict[tuple[int, ...], Tensor] = {}
        self._pad_id = pad_id
        texts = [((*row.prompt_ids, *row.target_ids), len(row.prompt_ids)) for row in rows]
        self._next = {self._known(ids[:end]): ids[end] for ids, first in texts for end in range(first, len(ids))}
        self._texts = {self._known(ids[:end]): ids[:end] for ids, first in texts for end in range(first, len(ids))}

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            text = self._known(ids)
            if text in self._texts:
                self.logits[self._texts[text]] = scores[row].float().clone()
            forced[row, self._next.get(text, self._pad_id)] = 0.0
        return forced

    def _known(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A text without its padding, which may begin like one of its own tokens."""
        return tuple(dropwhile(lambda token: token == self._pad_id, ids))


@contextmanager
def _counts_as_wrong(what: str) -> Iterator[None]:
    """A way on which the model fails is one that is not right for it."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture has its own for what it cannot do
        logger.info("%s fails with this model: %s: %s", what, type(error).__name__, first_line(error))


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    """Restores buffers of floating point numbers, also those that the model replaces."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in kept:
            module._buffers[name] = buffer.copy_(value)
