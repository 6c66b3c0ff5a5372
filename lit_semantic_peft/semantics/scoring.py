"""Scores facts with a model: distance and likelihood of each target, and whether it is recalled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.metrics import starts_with_answer
from lit_semantic_peft.models.forced_answers import answers_from_targets
from lit_semantic_peft.models.generation import greedy_answers, prompt_cache
from lit_semantic_peft.models.library_versions import cache_argument
from lit_semantic_peft.models.objective import target_logits
from lit_semantic_peft.models.sampling import sampled_answers
from lit_semantic_peft.models.tree_attention import measures_trees
from lit_semantic_peft.semantics.distances import Distance, TargetPass
from lit_semantic_peft.semantics.table import BoolArray, FloatArray, ScoredFacts
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch, EncodedFact, FactEncoder, PrefixTree, cheaper_tree, collate

SCORING_VERSION = 2
"""Part of every cache key. Increment it with every code change that changes a score."""

BATCHES_PER_PART = 4
"""Batches that a rank scores before it writes them to disk: the most that a killed job loses."""


@dataclass(frozen=True, slots=True)
class TargetScores:
    """Scores of targets under teacher forcing.

    Attributes:
        distances: By name, float32 `(B,)`.
        nll: float32 `(B,)`, nats per target token.
        is_recalled: bool `(B,)`, whether every target token is the argmax: teacher-forced recall.
    """

    distances: dict[str, Tensor]
    nll: Tensor
    is_recalled: Tensor


@torch.no_grad()
def target_pass(
    model: PreTrainedModel | PeftModel, batch: Batch, cache: DynamicCache | None = None, tree: PrefixTree | None = None
) -> TargetPass:
    """Runs a model over targets under teacher forcing, in one forward pass.

    Args:
        model: A causal language model, with or without an adapter.
        batch: Facts. The labelled tokens are measured.
        cache: Receives the keys and values of the pass; None if they are not needed.
        tree: As in `target_logits`.

    Raises:
        InputError: If the model has no output embeddings.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    projection = base.get_output_embeddings()
    if projection is None:
        raise InputError(
            f"`base_model`: {type(base).__name__} has no output embeddings, which distances need; "
            "expected a causal language model."
        )
    keeping = {} if cache is None else {str(cache_argument(base)): cache, "use_cache": True}
    logits, targets, hidden = target_logits(model, batch, tree=tree, **keeping)
    return TargetPass(
        logits=logits,
        hidden=hidden,
        targets=targets,
        row=(batch.labels != IGNORE_INDEX).nonzero()[:, 0],
        num_facts=len(batch),
        input_embeddings=base.get_input_embeddings().weight,
        output_embeddings=projection.weight,
    )


@torch.no_grad()
def score_pass(outputs: TargetPass, distances: Sequence[Distance] = ()) -> TargetScores:
    """Scores of each fact from a forward pass.

    Args:
        outputs: The pass, without end tokens.
        distances: Distances to measure.
    """
    nll = F.cross_entropy(outputs.logits.float(), outputs.targets, reduction="none")
    count = torch.bincount(outputs.row, minlength=outputs.num_facts)
    misses = torch.zeros_like(nll).where(outputs.logits.argmax(dim=-1) == outputs.targets, 1.0)
    zeros = torch.zeros(outputs.num_facts, device=nll.device)
    return TargetScores(
        distances={distance.name: distance.measure(outputs) for distance in distances},
        nll=zeros.index_add(0, outputs.row, nll) / count.clamp(min=1),
        is_recalled=(zeros.index_add(0, outputs.row, misses) == 0) & (count > 0),
    )


def score_targets(
    model: PreTrainedModel | PeftModel,
    batch: Batch,
    distances: Sequence[Distance] = (),
    *,
    tree: PrefixTree | None = None,
) -> TargetScores:
    """Scores one batch in one forward pass.

    Args:
        model: A causal language model, with or without an adapter.
        batch: Facts without end tokens.
        distances: Distances to measure; none that needs answers.
        tree: As in `target_logits`.

    Returns:
        The scores of the batch's facts.
    """
    return score_pass(target_pass(model, batch, tree=tree), distances)


def with_answers(
    outputs: TargetPass,
    model: PreTrainedModel | PeftModel,
    encoder: FactEncoder,
    prompts: Sequence[Sequence[int]],
    greedy: Sequence[list[int]],
    distances: Sequence[Distance],
) -> TargetPass:
    """Adds the free answers that distances need to a pass. No answer is longer than its target.

    Args:
        outputs: The pass over the targets.
        model: The model that answers.
        encoder: Tokenizes the facts.
        prompts: Token ids of each fact's prompt.
        greedy: Each fact's greedy answer, at least as long as the target or up to its end token.
        distances: Distances to measure. Distances with equal `sampling` share their samples.
    """
    longest = torch.bincount(outputs.row, minlength=outputs.num_facts).tolist()
    samples = {
        sampling: sampled_answers(
            model,
            prompts,
            longest,
            sampling,
            pad_id=encoder.pad_id,
            stop_ids=encoder.stop_ids,
            batch_size=len(prompts),
        )
        for sampling in {distance.sampling for distance in distances}
        if sampling is not None
    }
    answers = [ids[:most] for ids, most in zip(greedy, longest, strict=True)]
    return replace(outputs, answers=answers, samples=samples, decode=encoder.decode_answer)


def score_facts(
    model: PreTrainedModel | PeftModel,
    encoder: FactEncoder,
    facts: Sequence[Fact],
    distances: Sequence[Distance],
    *,
    encoded: Sequence[EncodedFact] | None = None,
    batch_size: int = 64,
    on_batch: Callable[[int], object] | None = None,
    prefix_tree: bool | None = None,
) -> ScoredFacts:
    """Scores facts with a model: distances, likelihood, greedy answers, and which facts it already knows.

    A fact is known if every target token is the argmax under teacher forcing, or if the free greedy answer, as long as
    the longest accepted answer, begins with an accepted answer. A base model does not stop by itself, so requiring an
    exact match would make every fact unknown.

    Args:
        model: The base model, on the device where it shall run, in evaluation mode.
        encoder: Tokenizes the facts.
        facts: At least one.
        distances: Distances to measure; the first becomes the table's `distance`.
        encoded: Tokens of the facts, where they are tokenized already.
        batch_size: Facts per batch.
        on_batch: Called with the number of facts done since the last call, for a progress bar.
        prefix_tree: As in `measures_trees`. A batch that runs as a tree also gives the beginning of its answers.

    Returns:
        One row per fact, in order.
    """
    encoded = encoder.encode_facts(facts) if encoded is None else encoded
    device = next(model.parameters()).device
    has_trees = measures_trees(model, prefix_tree)
    answers: list[list[int]] = [[] for _ in facts]
    columns: dict[str, FloatArray] = {distance.name: np.zeros(len(facts)) for distance in distances}
    nll = np.zeros(len(facts))
    recalled: BoolArray = np.zeros(len(facts), dtype=np.bool_)
    for rows in _by_length(encoded, batch_size):
        chunk = [encoded[row] for row in rows]
        prompts = [one.prompt_ids for one in chunk]
        most = [_longest_answer(encoder, facts[row], encoded[row]) for row in rows]
        stopping: dict[str, Any] = {"pad_id": encoder.pad_id, "stop_ids": encoder.stop_ids}
        batch = collate(chunk, rows, encoder.pad_id, with_end=False).to(device)
        tree = cheaper_tree(batch) if has_trees else None
        if tree is None:
            generated = greedy_answers(model, prompts, most, batch_size=batch_size, **stopping)
            outputs = target_pass(model, batch)
        else:
            cache = prompt_cache(model)
            outputs = target_pass(model, batch, cache, tree)
            sizes = [one.num_target_tokens for one in chunk]
            winners = [part.tolist() for part in torch.split(outputs.logits.argmax(dim=-1), sizes)]
            generated = answers_from_targets(model, chunk, winners, most, cache=cache, tree=tree, **stopping)
        outputs = with_answers(outputs, model, encoder, prompts, generated, distances)
        scores = score_pass(outputs, distances)
        for name, values in scores.distances.items():
            columns[name][rows] = values.double().cpu().numpy()
        nll[rows] = scores.nll.double().cpu().numpy()
        recalled[rows] = scores.is_recalled.cpu().numpy()
        for row, ids in zip(rows, generated, strict=True):
            answers[row] = ids
        if on_batch is not None:
            on_batch(len(rows))
    texts = tuple(encoder.decode_answer(ids) for ids in answers)
    generated_known = [starts_with_answer(text, fact.accepted_answers) for text, fact in zip(texts, facts, strict=True)]
    return ScoredFacts(
        fact_id=tuple(fact.id for fact in facts),
        relation=tuple(fact.relation for fact in facts),
        distance=columns[distances[0].name],
        base_nll=nll,
        is_known=recalled | np.array(generated_known, dtype=np.bool_),
        base_answer=texts,
        distances=columns,
    )


def scoring_parts(encoded: Sequence[EncodedFact], batch_size: int) -> list[list[int]]:
    """Divides facts into parts that are scored one at a time.

    The parts depend on the facts alone, not on the number of ranks or on earlier scores. So a fact is always batched
    with the same other facts and gets the same scores to the last bit.

    Args:
        encoded: The facts.
        batch_size: Facts per batch.

    Returns:
        Row numbers of each part, longest facts first.
    """
    return _by_length(encoded, batch_size * BATCHES_PER_PART)


def _longest_answer(encoder: FactEncoder, fact: Fact, encoded: EncodedFact) -> int:
    """Tokens of the longest accepted answer."""
    aliases = [encoder.count_answer_tokens(alias, fact.joiner) for alias in fact.aliases]
    return max([encoded.num_target_tokens, *aliases])


def _by_length(encoded: Sequence[EncodedFact], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first, so that running out of memory shows at once."""
    order = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row]), row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
