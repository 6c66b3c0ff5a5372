"""Collates encoded facts into padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_semantic_peft.tokens.encoding import EncodedFact

IGNORE_INDEX = -100
"""Label of a position that is not a target, as in Hugging Face."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of facts, padded on the right.

    Attributes:
        input_ids: int64 `(B, T)`.
        attention_mask: int64 `(B, T)`, 0 on padding.
        labels: int64 `(B, T)`, the target's ids at the positions of the target, -100 elsewhere.
        fact_index: int64 `(B,)`, dense index of the fact that each row belongs to.
        loss_weight: float32 `(B,)`, planned factor of each row's loss.
        is_filler: bool `(B,)`, whether a row only keeps a process busy that has no fact of its own in the step.
        text_index: int64 `(B,)`, dense index of each row's text; a fact's own prompt has the fact's index, another form
            of it one of its own.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    fact_index: Tensor
    loss_weight: Tensor
    is_filler: Tensor
    text_index: Tensor

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; Lightning calls this."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__slots__})

    def with_fillers(self, num_fillers: int) -> "Batch":
        """The same batch, of which the last rows are fillers of loss weight 0.

        Args:
            num_fillers: How many of the last rows, ≥ 1.
        """
        is_filler = torch.arange(len(self)) >= len(self) - num_fillers
        return replace(self, loss_weight=self.loss_weight.masked_fill(is_filler, 0.0), is_filler=is_filler)


def joined(batches: Sequence[Batch], pad_id: int) -> Batch:
    """The rows of several batches in one, padded on the right to the length of the longest.

    Args:
        batches: At least one.
        pad_id: Token id for padding; masked.
    """
    width = max(batch.labels.shape[1] for batch in batches)
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE_INDEX}

    def all_rows(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in batches]
        if name in fills:
            parts = [F.pad(part, (0, width - part.shape[1]), value=fills[name]) for part in parts]
        return torch.cat(parts)

    return Batch(*(all_rows(name) for name in Batch.__slots__))


def collate(
    rows: Sequence[EncodedFact],
    fact_index: Sequence[int],
    pad_id: int,
    *,
    loss_weight: Sequence[float] | None = None,
    text_index: Sequence[int] | None = None,
    with_end: bool = True,
) -> Batch:
    """Pads rows on the right to the length of the longest.

    Args:
        rows: The encoded facts, at least one.
        fact_index: Dense index of each row's fact.
        pad_id: Token id for padding; masked.
        loss_weight: Factor of each row's loss; 1 where None.
        text_index: Dense index of each row's text; `fact_index` where None.
        with_end: Whether the row includes the end token (training) or not (scoring, evaluation).

    Returns:
        The batch, on the CPU.

    Example:
        >>> batch = collate([EncodedFact((5, 6), (7,), (2,)), EncodedFact((5,), (8, 9))], [0, 1], pad_id=0)
        >>> batch.labels.tolist()
        [[-100, -100, 7, 2], [-100, 8, 9, -100]]
    """
    end_ids = [row.end_ids if with_end else () for row in rows]
    lengths = [len(row.prompt_ids) + len(row.target_ids) + len(end) for row, end in zip(rows, end_ids, strict=True)]
    shape = (len(rows), max(lengths))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for number, (row, end, length) in enumerate(zip(rows, end_ids, lengths, strict=True)):
        ids = torch.tensor((*row.prompt_ids, *row.target_ids, *end))
        input_ids[number, :length] = ids
        labels[number, len(row.prompt_ids) : length] = ids[len(row.prompt_ids) :]
        attention_mask[number, :length] = 1
    weights = torch.ones(len(rows)) if loss_weight is None else torch.tensor(loss_weight, dtype=torch.float32)
    index = torch.tensor(fact_index, dtype=torch.long)
    texts = index if text_index is None else torch.tensor(text_index, dtype=torch.long)
    return Batch(input_ids, attention_mask, labels, index, weights, torch.zeros(len(rows), dtype=torch.bool), texts)
