"""The LightningDataModule: from a file of facts to filtered, weighted batches."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm.auto import tqdm

from lit_semantic_peft.data.cache import ScoreCache
from lit_semantic_peft.data.features import FeatureCache
from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.data.planned_weights import PlannedWeights
from lit_semantic_peft.data.prepared import PreparedFacts, is_deferrable
from lit_semantic_peft.data.ranks import agreed, from_all_ranks, from_first_rank
from lit_semantic_peft.data.samplers import MicroBatch, RankShard, StepPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.answers import AnswerCache, questions_key
from lit_semantic_peft.evaluation.plan import EvaluationPlan
from lit_semantic_peft.evaluation.questions import (
    Question,
    doubt_questions,
    fact_questions,
    prompt_questions,
    retention_questions,
)
from lit_semantic_peft.facts import Fact, facts_key, read_facts
from lit_semantic_peft.files import content_key
from lit_semantic_peft.models.base import (
    DEFAULT_BASE_MODEL,
    BaseDtype,
    cache_folder,
    load_base_model,
    load_num_positions,
    load_stop_ids,
    load_tokenizer,
    resolve_base_model,
)
from lit_semantic_peft.semantics import (
    Distance,
    ExpectedEmbeddingDistance,
    FactFilter,
    NoFilter,
    ScoredFacts,
    ScoringContext,
    Selection,
    Strata,
    Surprisal,
    Uniform,
    Weighting,
    apply_filters,
    score_facts,
    scoring_parts,
    weights_of,
    with_strata,
)
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.tokens import Batch, EncodedFact, FactEncoder, Template, collate

logger = logging.getLogger(__name__)


_DEFAULT_PLAN = EvaluationPlan()
_NUM_BUILTIN_KNOWN = 128  # a base model of 135M parameters knows about a tenth of them


class KnowledgeDataModule(LightningDataModule):
    """Reads facts, measures how far each is from the base model, filters and weights them, and plans the batches.

    Filtering happens in `setup`. Scores come from a cache keyed by everything they depend on. What is missing is
    computed in parts that the ranks share; each part is written down at once, so that a killed job goes on with the
    parts that are there, and the numbers do not depend on how many ranks there were. Dropped facts are not lost: they
    are evaluated and reported.

    Args:
        facts: A built-in set (`world`, `counterfactual`, `fictional`), a file (.jsonl, .csv, .parquet, each also
            .gz where it is text), a folder of `datasets`, or a Hub data set.
        num_facts: How many facts to take, chosen by `seed`; None for all (`fictional`: how many to make up).
        contradictions: `error` refuses facts with the same prompt and different targets, `keep` takes them.
        dataset_split: Which split of a `datasets` folder or Hub data set.
        distance: What filters and weightings go by; `ExpectedEmbeddingDistance` where None.
        more_distances: Further distances to measure and report. `Surprisal` is always measured.
        filters: Applied in order, each to what the one before left; nothing is dropped where None.
        deferred_from_epoch: Epoch (from 0) from which the dropped facts are trained too, each once an epoch, weighted
            among all facts of the epoch; None for never. Facts that were dropped as known already, as near-duplicates
            or as contradictions stay dropped.
        strata: How the strata of the facts are found, a column of the fact table; None to find them (with the settings
            of `Strata()`) only if a filter or `mix_strata` needs them.
        mix_strata: Whether every optimizer step gets each stratum's share of facts, instead of facts of like length.
        weighting: From distance to loss weight; `Uniform` where None.
        template: `none`, or `chat` for the tokenizer's chat template.
        append_eos: Whether an answer is taught to end.
        max_length: Longest fact in tokens; a longer one is an error. None for what the model takes.
        micro_batch_size: Facts per forward pass of one process. Facts per optimizer step are this times
            `trainer.accumulate_grad_batches` times the number of processes.
        eval_batch_size: Facts per forward pass of scoring and evaluation.
        max_val_facts: How many facts, chosen by `seed`, are measured after each epoch, at least half of them kept ones
            where there are so many; all are measured in the end.
        bucket_steps: Optimizer steps whose facts are sorted by length together, which saves padding.
        evaluation: What the final evaluation asks beside the facts themselves.
        seed: Of the choice of facts and of their order.
        prompts: Free prompts for `predict`; the facts themselves where None.
        max_new_tokens: Longest answer to a free prompt, in tokens.
        cache_dir: Where scores are kept; the user's cache where None.
        base_model: The model that facts are measured against; the command line takes it from the module.
        revision: Its branch, tag or commit on the Hub.
        dtype: Type of its weights.
        trust_remote_code: Whether code that comes with it may run.
        chat_template_kwargs: What the chat template is given beside the turns, such as `enable_thinking: false`, or
            `date_string` where it prints the day's date.

    Raises:
        InputError: From `setup`, if the facts cannot be read, spelt, or filtered as asked.
    """

    def __init__(
        self,
        facts: str = "world",
        num_facts: int | None = None,
        contradictions: Literal["error", "keep"] = "error",
        dataset_split: str = "train",
        distance: Distance | None = None,
        more_distances: list[Distance] | None = None,
        filters: list[FactFilter] | None = None,
        deferred_from_epoch: int | None = None,
        strata: Strata | None = None,
        mix_strata: bool = False,
        weighting: Weighting | None = None,
        template: Template = "none",
        append_eos: bool = True,
        max_length: int | None = None,
        micro_batch_size: int = 16,
        eval_batch_size: int = 64,
        max_val_facts: int = 1000,
        bucket_steps: int = 8,
        evaluation: EvaluationPlan = _DEFAULT_PLAN,
        seed: int = 0,
        prompts: list[str] | None = None,
        max_new_tokens: int = 32,
        cache_dir: str | None = None,
        base_model: str = DEFAULT_BASE_MODEL,
        revision: str | None = None,
        dtype: BaseDtype = "float32",
        trust_remote_code: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("micro_batch_size", micro_batch_size),
            ("eval_batch_size", eval_batch_size),
            ("max_val_facts", max_val_facts),
            ("bucket_steps", bucket_steps),
            ("max_new_tokens", max_new_tokens),
        ):
            if value < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}")
        if deferred_from_epoch is not None and deferred_from_epoch < 1:
            raise InputError(
                f"`deferred_from_epoch` must be at least 1, got {deferred_from_epoch}. Epochs count from 0; facts that "
                "are to be trained from the first one on need no filter."
            )
        self.facts = facts
        self.num_facts = num_facts
        self.contradictions: Literal["error", "keep"] = contradictions
        self.dataset_split = dataset_split
        self.distances = _distances(distance or ExpectedEmbeddingDistance(), more_distances or [])
        self.filters: list[FactFilter] = filters or [NoFilter()]
        self.deferred_from_epoch = deferred_from_epoch
        needs_strata = mix_strata or any(one.needs_strata for one in self.filters)
        self.strata = strata or (Strata() if needs_strata else None)
        self.mix_strata = mix_strata
        self.weighting = weighting or Uniform()
        self.template: Template = template
        self.chat_template_kwargs = chat_template_kwargs
        self.append_eos = append_eos
        self.max_length = max_length
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.max_val_facts = max_val_facts
        self.bucket_steps = bucket_steps
        self.evaluation = evaluation
        self.seed = seed
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.cache = ScoreCache(cache_dir or cache_folder() / "scores")
        self.answer_cache = AnswerCache(Path(cache_dir or cache_folder()) / "answers")
        self.base_model = base_model
        self.revision = revision
        self.dtype: BaseDtype = dtype
        self.trust_remote_code = trust_remote_code
        self.stopwatch = Stopwatch()
        self._prepared: PreparedFacts | None = None
        self._encoder: FactEncoder | None = None
        self._questions: list[Question] | None = None
        self._position = (0, 0)

    @property
    def prepared(self) -> PreparedFacts:
        """What `setup` decided.

        Raises:
            RuntimeError: Before `setup`.
        """
        if self._prepared is None:
            raise RuntimeError("KnowledgeDataModule.setup() has not run yet")
        return self._prepared

    @property
    def encoder(self) -> FactEncoder:
        """How facts are spelt in the base model's tokens.

        Raises:
            RuntimeError: Before `setup`.
        """
        if self._encoder is None:
            raise RuntimeError("KnowledgeDataModule.setup() has not run yet")
        return self._encoder

    def prepare_data(self) -> None:
        """Downloads or converts the base model, in one process of each machine before the others look for it.

        `setup` looks for it too, on all ranks: only there a failure is one of all of them.
        """
        with self.stopwatch.during("setup"), suppress(InputError):
            resolve_base_model(self.base_model, self.revision)

    def setup(self, stage: str | None = None) -> None:
        """Reads, spells, scores, filters and weights the facts. A second call does none of this again.

        Args:
            stage: Lightning's stage. For `predict` with free prompts no fact is read.
        """
        if stage == "fit":
            self._position = (0, 0)  # where an earlier training was resumed; a checkpoint is read after this
        if stage == "fit" and self.trainer is not None:
            self._check_length(self.trainer)
        with self.stopwatch.during("setup"):
            if self._encoder is None:
                self._encoder = agreed(self._load_encoder)
            if self._prepared is None and not (stage == "predict" and self.prompts):
                self._prepared = self._prepare()

    def _check_length(self, trainer: Trainer) -> None:
        """Refuses a training that is cut short where the settings need to know its course; a trial run has none."""
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            raise InputError(
                "`trainer.overfit_batches` cannot be used: batches are planned by optimizer step. `data.num_facts` "
                "trains on a few facts."
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.deferred_from_epoch is not None:
            _prepare_deferral(trainer, self.deferred_from_epoch)
        start, end = self.weighting.start_and_end
        if start is not end:
            name = f"`weighting` {type(self.weighting).__name__}"
            _require_whole_epochs(trainer, name)
            if trainer.max_epochs in (None, -1) and trainer.max_steps < 0:
                raise InputError(
                    f"{name} moves from the start to the end of training, so that must be known: set "
                    "`trainer.max_epochs` or `trainer.max_steps`."
                )

    def _prepare(self) -> PreparedFacts:
        facts, encoded = agreed(self._read)
        context = ScoringContext(
            lambda: load_base_model(self._source, self.dtype, self.trust_remote_code).to(self.device),
            self.encoder,
            self.eval_batch_size,
        )
        measure = FeatureCache(self.cache.folder, self._source, self.dtype, context, facts)
        with self.stopwatch.during("scoring"):
            scored = self._scores(facts, encoded, context)
            if self.strata:
                strata = self.strata
                scored = from_first_rank(lambda: with_strata(scored, measure(strata, scored.fact_id)))
        return self._select(facts, encoded, scored, measure)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of the facts of the current epoch; the order depends on `seed` and epoch only."""
        prepared = self.prepared
        rows = np.flatnonzero(prepared.is_trained).tolist()
        epoch = self.trainer.current_epoch if self.trainer else 0
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        plan = StepPlan(
            rows,
            [len(prepared.encoded[row]) for row in rows],
            micro_batch_size=self.micro_batch_size,
            accumulate_grad_batches=accumulate,
            world_size=self._world_size,
            rank=self._rank,
            seed=self.seed,
            bucket_steps=self.bucket_steps,
            max_epochs=self.trainer.max_epochs if self.trainer else None,
            max_steps=self.trainer.max_steps if self.trainer else -1,
            mix=[prepared.scored.stratum[row] for row in rows] if self.mix_strata else None,
            deferred=np.flatnonzero(prepared.is_deferred).tolist(),
            deferred_from_epoch=prepared.weights.deferred_from_epoch or 0,
        )
        self._require_enough_steps(plan)
        plan.set_epoch(epoch)  # Lightning asks for the length before it does
        plan.resume(*self._position)
        return _loader(_FactBatches(prepared, self.encoder.pad_id, with_end=True, epoch=epoch), plan)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Facts to measure after each epoch: all of them, or `max_val_facts` chosen by `seed`."""
        is_kept = self.prepared.is_kept
        num_kept, num_others, size = is_kept.sum(), (~is_kept).sum(), self.max_val_facts
        # However few a filter keeps, they are measured: the best epoch is chosen by them.
        share = round(size * num_kept / len(is_kept))
        first = min(num_kept, max(share, -(-size // 2), size - num_others))
        order = np.random.default_rng(self.seed).permutation(len(is_kept))
        kept, others = order[is_kept[order]], order[~is_kept[order]]
        rows = sorted([*kept[:first].tolist(), *others[: size - first].tolist()])
        lengths = [len(self.prepared.encoded[row]) for row in rows]
        dataset = _FactBatches(self.prepared, self.encoder.pad_id, with_end=False)
        return _loader(dataset, self._shard(rows, lengths))

    def test_dataloader(self) -> DataLoader[list[Question]]:
        """Everything that is asked at the end, of all facts, kept and dropped."""
        return self._question_loader(self.questions)

    def predict_dataloader(self) -> DataLoader[list[Question]]:
        """The free prompts, or the facts' own prompts where there are none."""
        if self.prompts:
            return self._question_loader(prompt_questions(self.prompts, self.encoder, self.max_new_tokens))
        only_facts = EvaluationPlan(probes=[])
        questions = fact_questions(self.prepared.facts, self.encoder, only_facts)
        return self._question_loader([one for one in questions if one.kind == "fact"])

    @property
    def questions(self) -> list[Question]:
        """What the final evaluation asks: facts and probes, dialogues, and what must not change."""
        if self._questions is None:
            prepared, plan = self.prepared, self.evaluation
            questions = fact_questions(prepared.facts, self.encoder, plan, self.seed)
            if plan.doubt_turns:
                kept = prepared.kept_index
                chosen = np.random.default_rng(self.seed).permutation(kept)[: plan.doubt_facts]
                rows = sorted(chosen.tolist())
                questions += doubt_questions(prepared.facts, rows, self.encoder, plan.doubt_turns, len(questions))
            if plan.retention:
                first_number = questions[-1].number + plan.doubt_turns + 1
                questions += retention_questions(self._further_known_facts(), self.encoder, first_number)
            self._questions = questions
        return self._questions

    def retain(self, rows: Sequence[int]) -> None:
        """Notes which facts training holds in place, so that they are not taken for a measure of what is retained.

        Args:
            rows: Fact indices.
        """
        self._prepared = replace(self.prepared, retained_index=tuple(rows))
        self._questions = None

    def answer_manifest(self, version: int) -> dict[str, Any]:
        """Everything that the base model's answers depend on, as plain data.

        Args:
            version: Raised whenever the evaluation gives another answer than before.
        """
        return {
            "questions": questions_key(self.questions),
            "num_questions": len(self.questions),
            "doubt_turns": self.evaluation.doubt_turns,
            "base_model": self._source.public_name,
            "base_fingerprint": self._source.fingerprint,
            "dtype": self.dtype,
            **self.encoder.identity,
            "distances": [identity(distance) for distance in self.distances],
            # Rounding depends on what runs together, and a difference of nothing must be exactly 0.
            "eval_batch_size": self.eval_batch_size,
            "num_processes": self._world_size,
            "device": self.device.type,
            "precision": str(self.trainer.precision) if self.trainer else "32-true",
            "evaluation_version": version,
        }

    def _further_known_facts(self) -> list[Fact]:
        """Built-in facts about other subjects, where too few of the run's own known facts are untouched by training."""
        prepared = self.prepared
        if (prepared.scored.is_known & prepared.is_untouched).sum() >= self.evaluation.min_known_facts:
            return []
        subjects = {fact.subject for fact in prepared.facts}
        prompts = {fact.prompt for fact in prepared.facts}
        world = read_facts("world", seed=self.seed).facts
        others = [fact for fact in world if fact.subject not in subjects and fact.prompt not in prompts]
        order = np.random.default_rng(self.seed).permutation(len(others))[:_NUM_BUILTIN_KNOWN]
        return [others[place] for place in order]

    def training_batches(self, rows: Sequence[int], batch_size: int, *, with_end: bool = True) -> list[Batch]:
        """The training form of some facts, in the given order, for measurements beside the training.

        Args:
            rows: Fact indices.
            batch_size: Facts per batch.
            with_end: Whether the end token is a target too.
        """
        dataset = _FactBatches(self.prepared, self.encoder.pad_id, with_end=with_end)
        return [
            dataset[MicroBatch(tuple(rows[start : start + batch_size]))] for start in range(0, len(rows), batch_size)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: the epoch, and how many micro-batches of it each rank has done."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epoch, progress = self.trainer.current_epoch, loop.epoch_progress.current
        is_within_epoch = epoch == progress.completed < progress.ready
        return {"epoch": epoch, "num_done": loop.epoch_loop.batch_progress.current.ready if is_within_epoch else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there.

        Args:
            state_dict: From `state_dict`.
        """
        self._position = (state_dict["epoch"], state_dict["num_done"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves tensors; questions are text and stay.

        Args:
            batch: A `Batch`, or questions.
            device: Where to.
            dataloader_idx: Number of the loader.
        """
        return batch.to(device) if isinstance(batch, Batch) else batch

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _question_loader(self, questions: list[Question]) -> DataLoader[list[Question]]:
        lengths = [max(len(one.prompt_ids) + one.max_new_tokens, len(one.encoded or ())) for one in questions]
        return _loader(_QuestionBatches(questions), self._shard(range(len(questions)), lengths))

    def _require_enough_steps(self, plan: StepPlan) -> None:
        if self.trainer is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        num_steps = self.trainer.max_steps
        before = plan.steps_before(plan.deferred_from_epoch)
        if 0 <= num_steps <= before > 0:
            raise InputError(
                f"`deferred_from_epoch` {plan.deferred_from_epoch} begins after {before} optimizer steps, but "
                f"`trainer.max_steps` is {num_steps}: training would end before the dropped facts come back."
            )

    def _shard(self, rows: Sequence[int], lengths: Sequence[int]) -> RankShard:
        return RankShard(rows, lengths, batch_size=self.eval_batch_size, world_size=self._world_size, rank=self._rank)

    def _load_encoder(self) -> FactEncoder:
        self._source = resolve_base_model(self.base_model, self.revision)
        tokenizer = load_tokenizer(self._source, self.trust_remote_code)
        encoder = FactEncoder(
            tokenizer,
            self.template,
            self.append_eos,
            self.max_length,
            stop_ids=load_stop_ids(self._source, self.trust_remote_code),
            num_positions=load_num_positions(self._source, self.trust_remote_code),
            chat_template_kwargs=self.chat_template_kwargs,
        )
        if encoder.depends_on_the_day:
            logger.warning(
                "The chat template of %s prints the day's date: prompts differ from day to day, and scores and answers "
                "from the cache are those of the day on which they were measured. Set "
                "`data.chat_template_kwargs` to `{date_string: 26 Jul 2024}` if the template reads `date_string` "
                "(Llama 3 does), else take the date out of the template.",
                self.base_model,
            )
        return encoder

    def _read(self) -> tuple[Sequence[Fact], list[EncodedFact]]:
        fact_set = read_facts(
            self.facts,
            num_facts=self.num_facts,
            seed=self.seed,
            dataset_split=self.dataset_split,
            contradictions=self.contradictions,
        )
        if fact_set.conversion:
            logger.info("%s is in a published format: %s", self.facts, fact_set.conversion)
        for warning in fact_set.warnings:
            logger.warning(warning)
        facts = fact_set.facts
        encoded = self.encoder.encode_facts(facts)
        fact_questions(facts, self.encoder, self.evaluation)  # a probe that cannot be spelt is an error before training
        return facts, encoded

    def _select(
        self, facts: Sequence[Fact], encoded: Sequence[EncodedFact], scored: ScoredFacts, measure: FeatureCache
    ) -> PreparedFacts:
        inject = np.flatnonzero([fact.split == "inject" for fact in facts])
        logger.info("Facts read: %d, of which %d to inject", len(facts), len(inject))
        if not len(inject):
            raise InputError(f"`facts` {self.facts!r} holds no fact with split `inject`, so there is nothing to train.")
        to_inject = replace(scored.take(inject), measure=measure)
        selection = from_first_rank(lambda: apply_filters(self.filters, to_inject))
        is_kept, reason = _spread(selection, inject, facts)
        self.weighting.prepare(self.distances[0], scored.distance[is_kept])
        start, end = self._weigh(scored, is_kept)
        deferred = None
        if self.deferred_from_epoch is not None:
            is_deferred = is_deferrable(facts, reason)
            deferred = self._weigh(scored, is_kept | is_deferred)
            logger.info("Facts dropped but trained from epoch %d on: %d", self.deferred_from_epoch, is_deferred.sum())
        logger.info("Facts kept: %d, dropped: %d", int(is_kept.sum()), len(inject) - int(is_kept.sum()))
        key = content_key(
            facts_key(facts), self._source.fingerprint, self.template, self.append_eos,
            np.flatnonzero(is_kept).tolist(), start.tolist(), end.tolist(),
            self.deferred_from_epoch, [weights.tolist() for weights in deferred or ()],
            *([spelling] if (spelling := self.encoder.identity).keys() > {"template"} else []),
        )  # fmt: skip
        weights = PlannedWeights(start, end, self.deferred_from_epoch, deferred)
        return PreparedFacts(tuple(facts), tuple(encoded), scored, is_kept, reason, weights, key)

    def _weigh(self, scored: ScoredFacts, is_trained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss weights at the start and at the end of training, 0 for what is not trained."""
        trained = scored.take(np.flatnonzero(is_trained))
        start, end = np.zeros(len(scored)), np.zeros(len(scored))
        for weight, weighting in zip((start, end), self.weighting.start_and_end, strict=True):
            weight[is_trained] = weights_of(weighting, trained, is_rank_based=self.distances[0].is_rank_based)
        return start, end

    def _scores(self, facts: Sequence[Fact], encoded: Sequence[EncodedFact], context: ScoringContext) -> ScoredFacts:
        """Scores from the cache of the first rank; what it lacks is computed, a share of the parts on each rank."""
        manifest = self.cache.manifest(facts, self._source, self.encoder, self.distances, self.dtype)
        parts = scoring_parts(encoded, self.eval_batch_size)

        def cached() -> ScoredFacts | dict[int, ScoredFacts]:
            whole = self.cache.load(manifest)
            if whole is not None:
                return whole
            found = {
                number: self.cache.load_part(manifest, number, [facts[row].id for row in rows])
                for number, rows in enumerate(parts)
            }
            return {number: part for number, part in found.items() if part is not None}

        known = from_first_rank(cached)
        if isinstance(known, ScoredFacts):
            logger.info("Scores of %d facts come from the cache; no model was touched", len(facts))
            return known
        if known:
            logger.info("Scores of %d facts are there from an earlier job", sum(map(len, known.values())))
        missing = [number for number in range(len(parts)) if number not in known]
        mine = missing[self._rank :: self._world_size]
        computed = agreed(
            lambda: self._score_parts(facts, {number: parts[number] for number in mine}, manifest, context)
        )
        for others in from_all_ranks(computed):
            known |= others
        table = ScoredFacts.concatenate([known[number] for number in range(len(parts))])
        row_of = {fact_id: row for row, fact_id in enumerate(table.fact_id)}
        scored = table.take(np.array([row_of[fact.id] for fact in facts]))
        from_first_rank(lambda: self.cache.store(manifest, scored))
        return scored

    def _score_parts(
        self, facts: Sequence[Fact], parts: dict[int, list[int]], manifest: dict[str, Any], context: ScoringContext
    ) -> dict[int, ScoredFacts]:
        scored: dict[int, ScoredFacts] = {}
        total = sum(map(len, parts.values()))
        with tqdm(total=total, desc="Scoring facts", unit="fact", disable=self._rank != 0) as bar:
            for number, rows in parts.items():
                scored[number] = score_facts(
                    context.model,
                    context.encoder,
                    [facts[row] for row in rows],
                    self.distances,
                    batch_size=self.eval_batch_size,
                    on_batch=bar.update,
                )
                self.cache.store_part(manifest, number, scored[number])
        return scored

    @property
    def device(self) -> torch.device:
        """Where the base model is run: the trainer's device, else the first GPU, else the CPU."""
        if self.trainer is not None:
            return self.trainer.strategy.root_device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _FactBatches(Dataset[Batch]):
    """Collates the rows that a sampler asks for, weighted as in an epoch; fillers get weight 0."""

    def __init__(self, prepared: PreparedFacts, pad_id: int, with_end: bool, epoch: int = 0) -> None:
        self._prepared = prepared
        self._epoch = epoch
        self._pad_id = pad_id
        self._with_end = with_end

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        rows = micro_batch.rows
        weights = self._prepared.weights.at(rows, self._epoch, micro_batch.progress).tolist()
        encoded = [self._prepared.encoded[row] for row in rows]
        batch = collate(encoded, rows, self._pad_id, loss_weight=weights, with_end=self._with_end)
        return batch.with_fillers(micro_batch.num_fillers) if micro_batch.num_fillers else batch


class _QuestionBatches(Dataset[list[Question]]):
    """Hands out the questions that a sampler asks for."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions

    def __getitem__(self, micro_batch: MicroBatch) -> list[Question]:
        return [self._questions[row] for row in micro_batch.rows]


def _loader(dataset: Dataset[Any], sampler: DistributedSampler[MicroBatch]) -> DataLoader[Any]:
    # Without a generator of its own a loader draws a seed, which it does not use, from the one that dropout draws from:
    # a resumed run, which makes its loaders anew, would not be the same run.
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())


def _distances(first: Distance, more: Sequence[Distance]) -> list[Distance]:
    """The configured distance first, surprisal always, no name twice."""
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


def _spread(
    selection: Selection, inject: np.ndarray, facts: Sequence[Fact]
) -> tuple[np.ndarray, tuple[str | None, ...]]:
    """From a selection among the facts to inject to one among all facts."""
    is_kept = np.zeros(len(facts), dtype=np.bool_)
    is_kept[inject] = selection.kept
    reason: list[str | None] = [fact.split for fact in facts]
    for row, why in zip(inject, selection.reason, strict=True):
        reason[row] = why
    return is_kept, tuple(reason)


def _prepare_deferral(trainer: Trainer, first_epoch: int) -> None:
    """Has a loader made for each epoch, since epochs differ in length, and refuses what would cut them short."""
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= first_epoch:
        raise InputError(
            f"`deferred_from_epoch` must be below `trainer.max_epochs`, which is {trainer.max_epochs}, got "
            f"{first_epoch}: epochs count from 0, so training would end before the dropped facts come back."
        )
    _require_whole_epochs(trainer, "`deferred_from_epoch`")
    trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]


def _require_whole_epochs(trainer: Trainer, what: str) -> None:
    limit = trainer.limit_train_batches  # a count or a share: 1 is one micro-batch, 1.0 is all
    if isinstance(limit, int) or limit != 1.0:
        raise InputError(
            f"{what} needs whole epochs, but `trainer.limit_train_batches` is {limit}. Leave it out; `data.num_facts` "
            "makes a run short as well."
        )
