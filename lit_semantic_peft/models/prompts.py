"""Tells an adapter that is routed by prompts which prompt each row of a pass belongs to; nothing for any other."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from lit_semantic_peft.adapters import prompts_are
from lit_semantic_peft.adapters.routing import prompts_of
from lit_semantic_peft.models.peft_traits import traits_of_forward
from lit_semantic_peft.tokens import Batch


def of_prompts(model: nn.Module, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
    """A context in which the rows of every pass belong to these prompts.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.
        prompts: Token ids of each row's prompt, without padding.
    """
    return prompts_are(model, prompts) if traits_of_forward(model).routes else nullcontext()


def of_batch(model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
    """A context in which the rows of a pass over all but the last position belong to the prompts of a batch.

    A prompt is all before the first target; a text of which only the first token is no target has none, and counts as a
    whole. For load and balance the last token of a row never counts: of the longest row the pass does not have it.

    Args:
        model: As in `of_prompts`.
        batch: The rows of the pass.
    """
    if not traits_of_forward(model).routes:
        return nullcontext()
    mask = batch.attention_mask.bool()
    prompts = prompts_of(batch.input_ids, batch.attention_mask, batch.labels)
    return prompts_are(model, prompts, mask[:, :-1] & mask[:, 1:])
