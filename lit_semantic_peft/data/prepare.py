"""From a set of facts to what is trained: read, tokenize once, score, select, weigh. Knows nothing of Lightning."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from lit_semantic_peft.arguments import require_instance, require_seed
from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.data.features import MeasuredFeatures
from lit_semantic_peft.data.forms import PreparedForms, prepare_forms
from lit_semantic_peft.data.planned_weights import PlannedWeights
from lit_semantic_peft.data.plans import BatchPlan, EncodingPlan, FormsPlan, SelectionPlan
from lit_semantic_peft.data.prepared import PreparedFacts, is_deferrable
from lit_semantic_peft.data.ranks import from_all_ranks, from_first_rank
from lit_semantic_peft.data.scoring import all_distances, cached_scores, context_of
from lit_semantic_peft.data.self_checks import SelfChecks
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS, read_passages
from lit_semantic_peft.evaluation.plan import EvaluationPlan
from lit_semantic_peft.evaluation.questions import Question, fact_questions
from lit_semantic_peft.facts import Fact, GivenFacts, facts_key, read_facts, set_name
from lit_semantic_peft.files import content_key
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.semantics import (
    Distance,
    ExpectedEmbeddingDistance,
    FactFilter,
    FilterStep,
    NoFilter,
    ScoredFacts,
    Strata,
    Uniform,
    Weighting,
    apply_filters,
    weights_of,
    with_strata,
)
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadFacts:
    """Facts with their tokens and their questions.

    Attributes:
        facts: The facts, in order.
        encoded: Their tokens.
        forms: In which forms they are taught.
        questions: What the final evaluation asks of them.
        texts: The unrelated text that it measures.
    """

    facts: tuple[Fact, ...]
    encoded: tuple[EncodedFact, ...]
    forms: PreparedForms
    questions: tuple[Question, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Preparation:
    """The settings that decide which facts are trained and what each of them weighs.

    Attributes:
        facts: As `read_facts` takes it.
        num_facts: How many to take, chosen by `seed`; None for all.
        contradictions: `error` refuses facts with the same prompt and different targets, `keep` takes them.
        dataset_split: Which split of a `datasets` folder or Hub data set.
        seed: Of the choice of facts, and of the answers to choose from.
        encoding: How facts become tokens.
        forms: In which forms they are taught.
        selection: Distances, filters, weighting.
        batches: How many facts are scored together, and whether their strata are needed.
        evaluation: Which probes are asked.
        cache: Where scores and features are kept.
        self_checks: Where the verdicts of the self-check are kept; None where no model is checked.
        may_keep_none: Whether the filters may drop all facts, which then weigh nothing.
    """

    facts: GivenFacts
    num_facts: int | None
    contradictions: Literal["error", "keep"]
    dataset_split: str
    seed: int
    encoding: EncodingPlan
    forms: FormsPlan
    selection: SelectionPlan
    batches: BatchPlan
    evaluation: EvaluationPlan
    cache: ContentCache
    self_checks: ContentCache | None
    may_keep_none: bool = False

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require_instance("encoding", self.encoding, EncodingPlan, "EncodingPlan('chat')")
        require_instance("forms", self.forms, FormsPlan, "FormsPlan(sources=[Given()])")
        require_instance("selection", self.selection, SelectionPlan, "SelectionPlan(filters=[KnownFilter()])")
        require_instance("batches", self.batches, BatchPlan, "BatchPlan(micro_batch_size=4)")
        require_instance("evaluation", self.evaluation, EvaluationPlan, "EvaluationPlan(retention=False)")

    @property
    def set_name(self) -> str:
        """The source of the facts as the user named it; "" where they are in memory."""
        return set_name(self.facts)

    @cached_property
    def distances(self) -> list[Distance]:
        """The distances to measure; filters and weighting use the first."""
        plan = self.selection
        return all_distances(plan.distance or ExpectedEmbeddingDistance(), plan.more_distances or [])

    @cached_property
    def filters(self) -> list[FactFilter]:
        """Applied in order."""
        return self.selection.filters or [NoFilter()]

    @cached_property
    def weighting(self) -> Weighting:
        """From distance to loss weight; a copy, since it learns of the facts that it is prepared for."""
        return deepcopy(self.selection.weighting or Uniform())

    @cached_property
    def strata(self) -> Strata | None:
        """How strata are found; None where nothing needs them."""
        is_needed = self.batches.mix_strata or any(one.needs_strata for one in self.filters)
        return self.selection.strata or (Strata() if is_needed else None)

    def read(self, encoder: FactEncoder) -> ReadFacts:
        """Reads facts and tokenizes them with their forms and probes: what cannot be is an error before training.

        Args:
            encoder: From `encoder_of`.

        Raises:
            InputError: If the facts cannot be read or tokenized.
        """
        fact_set = read_facts(
            self.facts,
            num_facts=self.num_facts,
            seed=self.seed,
            dataset_split=self.dataset_split,
            contradictions=self.contradictions,
        )
        if fact_set.conversion:
            logger.info("%s is in a published format: %s", self.set_name or "`facts`", fact_set.conversion)
        for warning in fact_set.warnings:
            logger.warning(warning)
        encoded = tuple(encoder.encode_facts(fact_set.facts))
        forms = prepare_forms(fact_set.facts, encoded, self.forms, encoder, self.seed, self.set_name)
        asked = [one.asked for one in forms.of_facts]
        questions = tuple(fact_questions(asked, encoder, self.evaluation, self.seed, encoded=encoded))
        file = self.evaluation.texts
        texts = read_passages(file, "data.evaluation.texts") if file else NEUTRAL_TEXTS
        return ReadFacts(fact_set.facts, encoded, forms, questions, tuple(texts))

    def prepare(
        self,
        read: ReadFacts,
        base: BaseModel,
        encoder: FactEncoder,
        device: torch.device,
        stopwatch: Stopwatch,
        prefix_tree: bool | None = None,
    ) -> PreparedFacts:
        """Scores, selects and weighs facts. A collective: the ranks share the scoring and agree on the selection.

        Args:
            read: From `read`.
            base: The model that they are measured against.
            encoder: How facts become tokens.
            device: Where the base model runs.
            stopwatch: Takes the time of scoring.
            prefix_tree: As in `measures_trees`.

        Raises:
            InputError: If there is nothing to train, the processes have other facts, or a filter or weighting cannot be
                applied.
        """
        facts, encoded = read.facts, read.encoded
        keys = from_all_ranks(facts_key(facts))
        if len(set(keys)) > 1:
            raise InputError("`facts` differ between the processes. Each needs the same ones, in the same order.")
        checks = SelfChecks(base, encoder, self.self_checks) if self.self_checks else None
        context = context_of(base, encoder, facts, encoded, self.batches.eval_batch_size, device, checks, prefix_tree)
        measure = MeasuredFeatures(self.cache, base, context, facts)
        with stopwatch.during("scoring"):
            scored = cached_scores(facts, encoded, self.distances, base, context, self.cache)
            if (strata := self.strata) is not None:
                measured = scored
                scored = from_first_rank(lambda: with_strata(measured, measure(strata, measured.fact_id)))
        is_kept, reason, steps = self._selected(facts, replace(scored, measure=measure))
        if is_kept.any():
            self.weighting.prepare(self.distances[0], scored.distance[is_kept])
        start, end = self._weigh(scored, is_kept)
        late, deferred = self.selection.deferred_from_epoch, None
        if late is not None:
            is_deferred = is_deferrable(facts, reason)
            deferred = self._weigh(scored, is_kept | is_deferred)
            logger.info("Facts dropped but trained from epoch %d on: %d", late, is_deferred.sum())
        num_kept, num_inject = int(is_kept.sum()), sum(fact.split == "inject" for fact in facts)
        logger.info("Facts kept: %d, dropped: %d", num_kept, num_inject - num_kept)
        key = content_key(
            keys[0], base.source.fingerprint, encoder.template, encoder.append_eos,
            np.flatnonzero(is_kept).tolist(), start.tolist(), end.tolist(),
            late, [weights.tolist() for weights in deferred or ()],
            *([tokenized] if (tokenized := encoder.identity).keys() > {"template"} else []),
            *([read.forms.key] if read.forms.key else []),
        )  # fmt: skip
        weights = PlannedWeights(start, end, late, deferred)
        return PreparedFacts(facts, encoded, read.forms, scored, is_kept, reason, weights, key, steps=steps)

    def _selected(
        self, facts: Sequence[Fact], scored: ScoredFacts
    ) -> tuple[np.ndarray, tuple[str | None, ...], tuple[FilterStep, ...]]:
        """Which facts the filters keep, why each other one is not kept, and what each filter did."""
        inject = np.flatnonzero([fact.split == "inject" for fact in facts])
        logger.info("Facts read: %d, of which %d to inject", len(facts), len(inject))
        if not len(inject):
            named = f" {self.set_name!r}" if self.set_name else ""
            raise InputError(f"`facts`{named} holds no fact with split `inject`, so there is nothing to train.")
        chosen = scored.take(inject)
        selection = from_first_rank(lambda: apply_filters(self.filters, chosen, may_keep_none=self.may_keep_none))
        is_kept = np.zeros(len(facts), dtype=np.bool_)
        is_kept[inject] = selection.kept
        reason: list[str | None] = [fact.split for fact in facts]
        for row, why in zip(inject, selection.reason, strict=True):
            reason[row] = why
        return is_kept, tuple(reason), selection.steps

    def _weigh(self, scored: ScoredFacts, is_trained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss weights at the start and at the end of training, 0 for what is not trained."""
        trained = scored.take(np.flatnonzero(is_trained))
        start, end = np.zeros(len(scored)), np.zeros(len(scored))
        if not len(trained):
            return start, end
        for weight, weighting in zip((start, end), self.weighting.start_and_end, strict=True):
            weight[is_trained] = weights_of(weighting, trained, is_rank_based=self.distances[0].is_rank_based)
        return start, end


def base_model_of(own: BaseModel | None, module: object) -> BaseModel:
    """The base model that facts are measured against, its files found.

    Args:
        own: What the data module was given; None for what the module has.
        module: What is trained, whose `base_model` it must be; None where there is no trainer.

    Raises:
        InputError: If there is none, it is not found, or the data module was given another one than the module.
    """
    trained = getattr(module, "base_model", None)
    if not isinstance(trained, BaseModel):
        if own is None:
            raise InputError(
                "`base_model` is missing: without a trainer whose module has one, KnowledgeDataModule needs the model "
                "that the facts are measured against."
            )
        trained = own
    if own is not None and not own.is_same_as(trained):
        values = {one.name: (getattr(trained, one.name), getattr(own, one.name)) for one in fields(BaseModel)}
        differing = [
            f"`base_model.{name}` is {theirs!r} in the module and {ours!r} in the data module"
            for name, (theirs, ours) in values.items()
            if theirs != ours
        ] or [f"the files of `base_model` {own.name!r} have changed since the module found them"]
        raise InputError(
            f"{'; '.join(differing)}. Facts would be measured against another model than the one that is trained. Name "
            "it in the module alone."
        )
    _ = trained.source  # found now, where a failure stops all ranks
    return trained
