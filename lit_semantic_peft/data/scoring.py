"""How far facts are from a base model: from the cache, or measured in parts that the ranks share; and `score`."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_semantic_peft.arguments import require_instance
from lit_semantic_peft.cache import ContentCache, cache_folder
from lit_semantic_peft.data.encoders import encoder_of, encoder_of_loaded
from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.data.ranks import agreed, from_all_ranks, from_first_rank, my_share
from lit_semantic_peft.data.self_checks import SelfChecks, say_instead, verdict_cache
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import DEFAULT_DATASET_SPLIT, Fact, GivenFacts, facts_key, given_facts
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.models.base_files import DEFAULT_BASE_MODEL
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.self_check import check_rows
from lit_semantic_peft.models.self_check import self_check as find_fast_ways
from lit_semantic_peft.semantics import (
    SCORING_VERSION,
    Distance,
    ExpectedEmbeddingDistance,
    ScoredFacts,
    ScoringContext,
    Surprisal,
    score_facts,
    scoring_parts,
)
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

logger = logging.getLogger(__name__)

_DISTANCE_PREFIX = "distance_"
_DEFAULT_ENCODING = EncodingPlan()


@dataclass(frozen=True)
class FactScores:
    """Scores of facts under a model, a row per fact.

    Attributes:
        facts: The facts, in order.
        scored: What was measured.
    """

    facts: tuple[Fact, ...]
    scored: ScoredFacts

    def __len__(self) -> int:
        return len(self.facts)

    def __repr__(self) -> str:
        return f"FactScores({len(self.facts)} facts; distances: {', '.join(self.scored.distances)})"

    def to_arrow(self) -> pa.Table:
        """The table.

        Returns:
            Columns `fact_id`, `subject`, `relation`, `prompt`, `target`, `split`; `distance_<name>` for each distance;
            `base_nll` (nats per target token), `is_known` (whether the model already answers with the target)
            and `base_answer` (its free answer).
        """
        about = ("subject", "relation", "prompt", "target", "split")
        return pa.table(
            {
                "fact_id": list(self.scored.fact_id),
                **{name: [getattr(fact, name) for fact in self.facts] for name in about},
                **{_DISTANCE_PREFIX + name: values for name, values in self.scored.distances.items()},
                "base_nll": self.scored.base_nll,
                "is_known": self.scored.is_known,
                "base_answer": list(self.scored.base_answer),
            }
        )

    def to_pandas(self) -> Any:
        """The same as a data frame; needs pandas."""
        return self.to_arrow().to_pandas()


def score(
    facts: GivenFacts,
    model: BaseModel | str | os.PathLike[str] | PreTrainedModel | PeftModel = DEFAULT_BASE_MODEL,
    distances: Distance | Sequence[Distance] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_facts: int | None = None,
    seed: int = 0,
    dataset_split: str = DEFAULT_DATASET_SPLIT,
    encoding: EncodingPlan = _DEFAULT_ENCODING,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
    self_check: bool = True,
) -> FactScores:
    """How far facts are from a model, how likely they are under it, and which of them it knows. Trains nothing.

    The scores of a model that is given by name come from the cache, where they are, and are kept there.

    Args:
        facts: A built-in set, a file, a folder or a Hub data set, as `read_facts` takes it; what it returned; or facts.
        model: A base model, or its name or folder; or a loaded one, with or without an adapter, which is used unchanged
            on its device.
        distances: One or several; `ExpectedEmbeddingDistance` where None. `Surprisal` is always measured.
        tokenizer: Of a model that is loaded.
        num_facts: How many of the facts to take, chosen by `seed`; None for all.
        seed: Of that choice.
        dataset_split: Which split of a `datasets` folder or Hub data set to read.
        encoding: How facts become tokens.
        batch_size: Facts per forward pass.
        device: Where a model that is given by name runs; None for the first GPU, else the CPU.
        cache_dir: Where scores are kept; the user's cache where None.
        self_check: Whether the fast ways to run the model are first checked to be exact for it, see `self_check`.

    Raises:
        InputError: If an argument cannot be used, two facts share an id, a loaded model comes without its tokenizer, or
            the self-check finds no right way.

    Example:
        >>> table = score("world", num_facts=8)  # doctest: +SKIP
        >>> table.to_pandas().sort_values("distance_ExpectedEmbeddingDistance")  # doctest: +SKIP
    """
    facts = given_facts(facts, num_facts=num_facts, seed=seed, dataset_split=dataset_split)
    first, *more = _given_distances(distances)
    measured = all_distances(first, more)
    require_instance("encoding", encoding, EncodingPlan, "EncodingPlan('chat')")
    if isinstance(model, BaseModel | str | os.PathLike):
        if tokenizer is not None:
            raise InputError(
                "`tokenizer` belongs to a model that is loaded; a base model brings its own. Leave it out."
            )
        base = BaseModel.of(model)
        encoder = encoder_of(base, encoding)
        encoded = encoder.encode_facts(facts)
        checks = SelfChecks(base, encoder, verdict_cache(cache_dir)) if self_check else None
        context = context_of(base, encoder, facts, encoded, batch_size, default_device(device), checks)
        cache = ContentCache(cache_dir or cache_folder() / "scores")
        return FactScores(facts, cached_scores(facts, encoded, measured, base, context, cache))
    require_loaded(model, "a base model, its name or folder, or a loaded model of transformers or peft")
    encoder = encoder_of_loaded(model, tokenizer, encoding)
    if self_check:
        say_instead(find_fast_ways(model, check_rows(encoder, model), encoder.pad_id), type(model).__name__)
    with modes_restored(model):
        scored = score_facts(model.eval(), encoder, facts, measured, batch_size=batch_size)
    return FactScores(facts, scored)


def _given_distances(distances: Distance | Sequence[Distance] | None) -> list[Distance]:
    if distances is None:
        return [ExpectedEmbeddingDistance()]
    given: list[Distance] = []
    for one in distances if isinstance(distances, list | tuple) else [distances]:
        if not isinstance(one, Distance):
            raise InputError(f"`distances`: expected a distance such as `Surprisal()`, or a list of them, got {one!r}")
        given.append(one)
    return given or [ExpectedEmbeddingDistance()]


def require_loaded(model: object, expected: str) -> None:
    """Refuses what is no loaded model.

    Args:
        model: What was given.
        expected: What may be given, for the message.

    Raises:
        InputError: If it is no model of transformers or peft.
    """
    if not isinstance(model, PreTrainedModel | PeftModel):
        hint = "; give its `.model`" if "model" in dir(model) else ""
        raise InputError(f"`model`: expected {expected}, got {type(model).__name__}{hint}")


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The first GPU, else the CPU, where none is given.

    Args:
        device: The one that is asked for.
    """
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def all_distances(first: Distance, more: Sequence[Distance]) -> list[Distance]:
    """The distances to measure: the configured one first, surprisal always, no name twice.

    Args:
        first: The distance that filters and weightings use.
        more: Further ones.

    Raises:
        InputError: If a distance is given twice with different settings.
    """
    distances = [first]
    for distance in (*more, Surprisal()):
        known = {other.name: other for other in distances}
        if distance.name not in known:
            distances.append(distance)
        elif vars(distance) != vars(known[distance.name]):
            raise InputError(
                f"`more_distances` has {distance.name} twice with different settings; tables name columns by it"
            )
    return distances


def context_of(
    base: BaseModel,
    encoder: FactEncoder,
    facts: Sequence[Fact],
    encoded: Sequence[EncodedFact],
    batch_size: int,
    device: torch.device,
    checks: SelfChecks | None,
    prefix_tree: bool | None = None,
) -> ScoringContext:
    """What facts are measured with; the base model is loaded when something has to be measured.

    Args:
        base: The base model.
        encoder: How facts become tokens.
        facts: The facts.
        encoded: Their tokens.
        batch_size: Facts per forward pass.
        device: Where the base model runs.
        checks: What the base model is asked before it measures anything; None for nothing.
        prefix_tree: As in `measures_trees`.
    """
    tokens = {fact.id: one for fact, one in zip(facts, encoded, strict=True)}

    def load() -> PreTrainedModel:
        model = base.load().to(device)
        if checks is not None:
            checks.check(model)
        return model

    return ScoringContext(load, encoder, batch_size, tokens, is_checked=checks is not None, prefix_tree=prefix_tree)


def score_manifest(
    facts: Sequence[Fact],
    base: BaseModel,
    encoder: FactEncoder,
    distances: Sequence[Distance],
    *,
    is_checked: bool,
    prefix_tree: bool | None = None,
) -> dict[str, Any]:
    """Everything that the scores depend on, as plain data.

    Args:
        facts: The facts, in order.
        base: The base model.
        encoder: How facts become tokens.
        distances: What is measured.
        is_checked: Whether the self-check decides how the model answers.
        prefix_tree: As in `measures_trees`. Scores of trees are rounded otherwise than those of padded batches.
    """
    may_be_trees = prefix_tree or (prefix_tree is None and is_checked)
    return {
        **({"prefix_tree": True} if may_be_trees else {}),
        "facts": facts_key(facts),
        "num_facts": len(facts),
        "base_model": base.source.public_name,
        "base_fingerprint": base.source.fingerprint,
        "dtype": base.dtype,
        **encoder.identity,
        "distances": [identity(distance) for distance in distances],
        "self_check": is_checked,
        "scoring_version": SCORING_VERSION,
    }


def cached_scores(
    facts: Sequence[Fact],
    encoded: Sequence[EncodedFact],
    distances: Sequence[Distance],
    base: BaseModel,
    context: ScoringContext,
    cache: ContentCache,
) -> ScoredFacts:
    """Scores from the cache of the first rank; what it lacks is computed, a share of the parts on each rank.

    Each part is stored at once, so that a killed job resumes from the parts that are complete. A collective.

    Args:
        facts: The facts, in order.
        encoded: Their tokens.
        distances: What is measured; the first becomes the table's `distance`.
        base: The base model.
        context: What is measured with.
        cache: Where scores are kept.

    Returns:
        One row per fact, in order; the numbers do not depend on how many ranks there are.
    """
    how: dict[str, Any] = {"is_checked": context.is_checked, "prefix_tree": context.prefix_tree}
    manifest = score_manifest(facts, base, context.encoder, distances, **how)
    parts = scoring_parts(encoded, context.batch_size)
    first = distances[0].name

    def decode(table: pa.Table) -> ScoredFacts:
        return scored_from_table(table, first)

    def decode_whole(table: pa.Table) -> ScoredFacts:
        whole = decode(table)
        if whole.fact_id != tuple(fact.id for fact in facts):
            raise ValueError("the scores are of other facts")
        return whole

    def cached() -> ScoredFacts | dict[int, ScoredFacts]:
        whole = cache.load_table(manifest, decode_whole)
        if whole is not None:
            return whole
        found = {}
        for number, rows in enumerate(parts):
            part = cache.load_part(manifest, number, decode)
            # A part of another split counts as absent.
            if part is not None and part.fact_id == tuple(facts[row].id for row in rows):
                found[number] = part
        return found

    def score_parts(numbers: Sequence[int]) -> dict[int, ScoredFacts]:
        scored: dict[int, ScoredFacts] = {}
        total = sum(len(parts[number]) for number in numbers)
        with tqdm(total=total, desc="Scoring facts", unit="fact", disable=not is_first) as bar:
            for number in numbers:
                scored[number] = score_facts(
                    context.model,
                    context.encoder,
                    [facts[row] for row in parts[number]],
                    distances,
                    encoded=[encoded[row] for row in parts[number]],
                    batch_size=context.batch_size,
                    on_batch=bar.update,
                    prefix_tree=context.prefix_tree,
                )
                cache.store_part(manifest, number, scores_table(scored[number]))
        return scored

    known = from_first_rank(cached)
    if isinstance(known, ScoredFacts):
        logger.info("Scores of %d facts come from the cache; no model was loaded", len(facts))
        return known
    if known:
        logger.info("Scores of %d facts are complete from an earlier job", sum(map(len, known.values())))
    mine, is_first = my_share([number for number in range(len(parts)) if number not in known])
    for others in from_all_ranks(agreed(lambda: score_parts(mine))):
        known |= others
    table = ScoredFacts.concatenate([known[number] for number in range(len(parts))])
    row_of = {fact_id: row for row, fact_id in enumerate(table.fact_id)}
    scored = table.take(np.array([row_of[fact.id] for fact in facts]))
    from_first_rank(lambda: cache.store_table(manifest, scores_table(scored)))
    return scored


def scores_table(scored: ScoredFacts) -> pa.Table:
    """Scores as they are kept.

    Args:
        scored: The scores.
    """
    return pa.table(
        {
            "fact_id": list(scored.fact_id),
            "relation": list(scored.relation),
            "base_nll": scored.base_nll,
            "is_known": scored.is_known,
            "base_answer": list(scored.base_answer),
            **{_DISTANCE_PREFIX + name: values for name, values in scored.distances.items()},
        }
    )


def scored_from_table(table: pa.Table, distance: str) -> ScoredFacts:
    """The scores that `scores_table` kept.

    Args:
        table: From `scores_table`.
        distance: Name of the distance that filters and weightings use.
    """
    columns: Mapping[str, list[Any]] = table.to_pydict()
    distances = {
        name.removeprefix(_DISTANCE_PREFIX): np.array(values, dtype=np.float64)
        for name, values in columns.items()
        if name.startswith(_DISTANCE_PREFIX)
    }
    return ScoredFacts(
        fact_id=tuple(columns["fact_id"]),
        relation=tuple(columns["relation"]),
        distance=distances[distance],
        base_nll=np.array(columns["base_nll"], dtype=np.float64),
        is_known=np.array(columns["is_known"], dtype=np.bool_),
        base_answer=tuple(columns["base_answer"]),
        distances=distances,
    )
