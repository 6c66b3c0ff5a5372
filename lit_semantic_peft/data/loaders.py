"""Data sets that collate what a sampler asks for, and the loaders around them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from lit_semantic_peft.data.plans import BatchPlan
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.samplers import MicroBatch, RankShard
from lit_semantic_peft.evaluation.questions import Question
from lit_semantic_peft.tokens import Batch, collate


class FactBatches(Dataset[Batch]):
    """Collates the rows that a sampler asks for; fillers get weight 0.

    In an epoch of a training each fact stands in its form of that epoch, with its weight among the facts of that epoch;
    outside of one it stands as its own prompt, weighted as in the first epoch.

    Args:
        prepared: The facts.
        pad_id: Token id for padding.
        with_end: Whether the end token is a target too.
    """

    def __init__(self, prepared: PreparedFacts, pad_id: int, with_end: bool) -> None:
        self._prepared = prepared
        self._pad_id = pad_id
        self._with_end = with_end

    @override
    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        rows, epoch = micro_batch.rows, micro_batch.epoch
        weights = self._prepared.weights.at(rows, epoch or 0, micro_batch.progress).tolist()
        forms = self._prepared.forms
        texts = [forms.text_of(row, None if row in micro_batch.own_prompts else epoch) for row in rows]
        encoded = [forms.texts[text] for text in texts]
        batch = collate(encoded, rows, self._pad_id, loss_weight=weights, text_index=texts, with_end=self._with_end)
        return batch.with_fillers(micro_batch.num_fillers) if micro_batch.num_fillers else batch


class AskedBatches(Dataset[Batch]):
    """Collates the texts that a sampler asks for.

    Args:
        prepared: The facts. Rows are texts of `prepared.forms`.
        pad_id: Token id for padding.
        with_end: Whether the end token is a target too, as in training.
    """

    def __init__(self, prepared: PreparedFacts, pad_id: int, with_end: bool = False) -> None:
        self._forms = prepared.forms
        self._pad_id = pad_id
        self._with_end = with_end

    @override
    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        texts = micro_batch.rows
        encoded = [self._forms.texts[text] for text in texts]
        facts = [self._forms.fact_of[text] for text in texts]
        return collate(encoded, facts, self._pad_id, text_index=texts, with_end=self._with_end)


class QuestionBatches(Dataset[list[Question]]):
    """The questions that a sampler asks for.

    Args:
        questions: All questions.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions

    @override
    def __getitem__(self, micro_batch: MicroBatch) -> list[Question]:
        return [self._questions[row] for row in micro_batch.rows]


def loader(
    dataset: FactBatches | AskedBatches | QuestionBatches, sampler: DistributedSampler[MicroBatch]
) -> DataLoader[Any]:
    """A loader of what the sampler asks for.

    Args:
        dataset: Gives a batch for each micro-batch.
        sampler: Which micro-batches.
    """
    # Without its own generator a loader draws an unused seed from the global one, which dropout uses too. A resumed run
    # makes its loaders again, so its dropout would differ.
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())


def validation_loader(
    prepared: PreparedFacts, pad_id: int, batches: BatchPlan, seed: int, *, world_size: int, rank: int
) -> DataLoader[Batch]:
    """The facts to measure after each epoch, by their own prompts, and kept ones by their stopping forms too.

    Args:
        prepared: The facts.
        pad_id: Token id for padding.
        batches: How many facts are measured, and how many together.
        seed: Of their choice.
        world_size: Number of ranks.
        rank: This rank.
    """
    rows = validation_rows(prepared.is_kept, batches.max_val_facts, seed)
    forms = prepared.forms
    asked = dict.fromkeys([*rows, *(text for row in rows if prepared.is_kept[row] for text in forms.stopping[row])])
    return text_loader(prepared, pad_id, list(asked), batches.eval_batch_size, world_size=world_size, rank=rank)


def text_loader(
    prepared: PreparedFacts, pad_id: int, texts: Sequence[int], batch_size: int, *, world_size: int, rank: int
) -> DataLoader[Batch]:
    """Texts to measure, those of similar length together; equally many batches on each rank.

    Args:
        prepared: The facts.
        pad_id: Token id for padding.
        texts: Numbers of texts in `prepared.forms`.
        batch_size: Texts per forward pass.
        world_size: Number of ranks.
        rank: This rank.
    """
    lengths = [len(prepared.forms.texts[text]) for text in texts]
    shard = RankShard(texts, lengths, batch_size=batch_size, world_size=world_size, rank=rank)
    return loader(AskedBatches(prepared, pad_id), shard)


def question_loader(
    questions: Sequence[Question], batches: BatchPlan, *, world_size: int, rank: int
) -> DataLoader[list[Question]]:
    """Questions, those of similar length together.

    Args:
        questions: All of them.
        batches: How many are asked together.
        world_size: Number of ranks.
        rank: This rank.
    """
    lengths = [max(len(one.prompt_ids) + one.max_new_tokens, len(one.encoded or ())) for one in questions]
    rows, size = range(len(questions)), batches.eval_batch_size
    shard = RankShard(rows, lengths, batch_size=size, world_size=world_size, rank=rank)
    return loader(QuestionBatches(questions), shard)


def validation_rows(is_kept: np.ndarray, size: int, seed: int) -> list[int]:
    """Which facts are measured after each epoch: at least half of them kept ones, where there are so many.

    Args:
        is_kept: Whether the filters kept a fact, bool `(n,)`.
        size: How many facts to measure; all where there are fewer.
        seed: Of the choice.

    Returns:
        Fact indices, ascending.
    """
    num_kept, num_others = is_kept.sum(), (~is_kept).sum()
    # However few facts a filter keeps, they are measured: they decide which epoch is the best.
    share = round(size * num_kept / len(is_kept))
    first = min(num_kept, max(share, -(-size // 2), size - num_others))
    order = np.random.default_rng(seed).permutation(len(is_kept))
    kept, others = order[is_kept[order]], order[~is_kept[order]]
    return sorted([*kept[:first].tolist(), *others[: size - first].tolist()])


def fact_batches(
    prepared: PreparedFacts, rows: Sequence[int], batch_size: int, pad_id: int, *, with_end: bool = True
) -> list[Batch]:
    """Some facts by their own prompts, in the given order, for measurements beside the training.

    Args:
        prepared: The facts.
        rows: Fact indices.
        batch_size: Facts per batch.
        pad_id: Token id for padding.
        with_end: Whether the end token is a target too.
    """
    dataset = FactBatches(prepared, pad_id, with_end)
    return [dataset[MicroBatch(tuple(rows[start : start + batch_size]))] for start in range(0, len(rows), batch_size)]


def text_batches(prepared: PreparedFacts, texts: Sequence[int], batch_size: int, pad_id: int) -> list[Batch]:
    """Some texts as training runs them, in the given order, for computations beside the training.

    Args:
        prepared: The facts.
        texts: Numbers of texts in `prepared.forms`.
        batch_size: Texts per batch.
        pad_id: Token id for padding.
    """
    dataset = AskedBatches(prepared, pad_id, with_end=True)
    return [dataset[MicroBatch(tuple(texts[start : start + batch_size]))] for start in range(0, len(texts), batch_size)]
