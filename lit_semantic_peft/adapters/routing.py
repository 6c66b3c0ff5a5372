"""Which prompt each row of a pass belongs to, and what it names: between a model's tuner and its routed layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_semantic_peft.adapters.anchors import Anchors

_NO_TARGET = -100


@dataclass(frozen=True)
class Rows:
    """The rows of a pass, for one adapter.

    Attributes:
        is_open: bool `(B,)`, whether the row's prompt has an anchor.
        anchor: float32 `(B, d)`, the mean input embedding of the anchors' tokens; 0 where there is none.
        is_token: bool `(B, T)`, False on padding; None where all positions are tokens.
    """

    is_open: Tensor
    anchor: Tensor
    is_token: Tensor | None

    def routed_tokens(self, length: int) -> Tensor:
        """Which positions are tokens that experts act on, bool `(B, length)`."""
        routed = self.is_open[:, None].expand(-1, length)
        if self.is_token is None or self.is_token.shape != routed.shape:
            return routed
        return routed & self.is_token.to(routed.device)


@dataclass
class Routing:
    """What the routed layers of a model read in a pass, and what they note of it in training.

    Attributes:
        rows: What the layers need to know of the rows of a pass, by adapter; empty outside of one.
        named: Which positions of a pass are tokens of names, bool `(B, T)`, by adapter, for those that act there alone.
        prompts: Token ids of each row's prompt, where the caller knows better than the tokens of the pass.
        is_token: Which positions count for load and balance, where the caller knows better than the mask of the pass.
        notes: Of each routed layer in a training pass: the layer, its mean router probabilities `(B, E)` with their
            graph, and how many choices each expert got `(B, E)`.
    """

    rows: dict[str, Any] = field(default_factory=dict)
    named: dict[str, Tensor] = field(default_factory=dict)
    prompts: Sequence[Sequence[int]] | None = None
    is_token: Tensor | None = None
    notes: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)

    @contextmanager
    def of_prompts(self, prompts: Sequence[Sequence[int]], is_token: Tensor | None = None) -> Iterator[None]:
        """Within the block the rows of every pass belong to these prompts, whatever its tokens are.

        Args:
            prompts: Token ids of each row's prompt, without padding.
            is_token: Which positions count for load and balance, bool `(B, T)`; those of the pass's mask where None.
        """
        before = self.prompts, self.is_token
        self.prompts, self.is_token = prompts, is_token
        try:
            yield
        finally:
            self.prompts, self.is_token = before

    @contextmanager
    def of_rows(self, rows: dict[str, Any]) -> Iterator[None]:
        """Within the block the routed layers see these rows.

        Args:
            rows: By adapter.
        """
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows, self.named = before, {}


def prompts_of(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> list[list[int]]:
    """The prompt of each row: its tokens before the first label; all of them where there is no prompt before it.

    Args:
        input_ids: int64 `(B, T)`.
        attention_mask: int64 `(B, T)`, 0 on padding; None, or another shape, for no padding.
        labels: int64 `(B, T)`, -100 where there is no target; None for no targets.

    Returns:
        Token ids of each row, without padding.
    """
    is_token = tokens_in(attention_mask, input_ids.shape)
    is_token = torch.ones_like(input_ids, dtype=torch.bool) if is_token is None else is_token
    prompts = []
    for number, row in enumerate(input_ids.tolist()):
        kept = [at for at, is_kept in enumerate(is_token[number].tolist()) if is_kept]
        if labels is not None:
            first = next((at for at, label in enumerate(labels[number].tolist()) if label != _NO_TARGET), len(row))
            before = [at for at in kept if at < first]
            kept = before if len(before) > 1 else kept  # a start token alone is no prompt: the row is plain text
        prompts.append([row[at] for at in kept])
    return prompts


def tokens_in(attention_mask: Any, shape: Sequence[int]) -> Tensor | None:
    """Which positions are tokens, bool `(B, T)`; None where the mask does not say it in this shape."""
    if isinstance(attention_mask, Tensor) and attention_mask.shape == torch.Size(shape):
        return attention_mask.bool()
    return None


def names_in(ids: Sequence[int], anchors: Anchors | None, embed: nn.Module) -> tuple[str, ...]:
    """The names of a prompt; of one that has none, the most similar one, where the anchors have a threshold for it.

    Args:
        ids: Token ids of the prompt.
        anchors: The names; None for none.
        embed: The model's input embedding.
    """
    if anchors is None:
        return ()
    found = anchors.of_tokens(ids)
    return found if found or anchors.least_similarity is None else most_similar(ids, anchors, embed)


@torch.no_grad()
def rows_of(
    prompts: Sequence[Sequence[int]], anchors: Anchors | None, embed: nn.Module, is_token: Tensor | None
) -> Rows:
    """What the layers need to know of some prompts.

    Args:
        prompts: Token ids of each row's prompt.
        anchors: The names; None for none.
        embed: The model's input embedding.
        is_token: As in `Rows`.
    """
    device = next(embed.parameters()).device
    found = [names_in(ids, anchors, embed) for ids in prompts]
    anchor = torch.zeros(len(found), int(embed.embedding_dim), device=device)  # type: ignore[arg-type]
    for row, names in enumerate(found):
        if names and anchors is not None:
            anchor[row] = _embedded([one for name in names for one in anchors.tokens_of(name)], embed).mean(dim=0)
    return Rows(torch.tensor([bool(names) for names in found], device=device), anchor, is_token)


@torch.no_grad()
def most_similar(ids: Sequence[int], anchors: Anchors, embed: nn.Module) -> tuple[str, ...]:
    """The name whose mean input embedding is most similar to that of as many tokens in a row of a prompt.

    Cost: for each prompt without a name, its tokens times the number of names times the width of the embedding.

    Args:
        ids: Token ids of the prompt.
        anchors: The names, and the least cosine that counts.
        embed: The model's input embedding.

    Returns:
        The name, or the subject that it stands for; nothing where no cosine reaches the threshold.
    """
    if not ids or anchors.least_similarity is None:
        return ()
    tokens = _embedded(ids, embed)
    best, name = -1.0, ""
    for length, (names, vectors) in _vectors_by_length(anchors, embed).items():
        if length <= len(tokens):
            windows = tokens.unfold(0, length, 1).mean(dim=-1)
            cosine = F.normalize(windows, dim=-1) @ vectors.to(windows.device).T
            value, at = cosine.max(dim=0).values.max(dim=0)
            if float(value) > best:
                best, name = float(value), names[int(at)]
    return (anchors.same_as.get(name, name),) if best >= anchors.least_similarity else ()


_VECTORS: WeakKeyDictionary[Anchors, dict[int, tuple[list[str], Tensor]]] = WeakKeyDictionary()


def _vectors_by_length(anchors: Anchors, embed: nn.Module) -> dict[int, tuple[list[str], Tensor]]:
    """The names of each number of tokens, and their mean embeddings of length 1, `(names, d)`; computed once."""
    if anchors not in _VECTORS:
        by_length: dict[int, list[str]] = {}
        for name in anchors.table.names:
            by_length.setdefault(len(anchors.tokens_of(name)), []).append(name)
        _VECTORS[anchors] = {
            length: (names, F.normalize(_means([anchors.tokens_of(one) for one in names], embed), dim=-1))
            for length, names in by_length.items()
            if length
        }
    return _VECTORS[anchors]


def _means(names: Sequence[Sequence[int]], embed: nn.Module) -> Tensor:
    """The mean input embedding of each name's tokens, `(names, d)`."""
    return torch.stack([_embedded(ids, embed).mean(dim=0) for ids in names])


def _embedded(ids: Sequence[int], embed: nn.Module) -> Tensor:
    """Input embeddings of tokens, float32 `(T, d)`."""
    embedded: Tensor = embed(torch.tensor(list(ids), device=next(embed.parameters()).device))
    return embedded.float()
