"""The LightningDataModule: the facts as a trainer's batches."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_semantic_peft.arguments import require_instances, require_whole_number
from lit_semantic_peft.cache import ContentCache, cache_folder
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.loaders import FactBatches, fact_batches, loader, question_loader, validation_loader
from lit_semantic_peft.data.moved import refuse_moved
from lit_semantic_peft.data.plans import BatchPlan, EncodingPlan, FormsPlan, SelectionPlan
from lit_semantic_peft.data.prepare import Preparation, ReadFacts, base_model_of
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.data.questions import answer_manifest, final_questions, own_questions
from lit_semantic_peft.data.ranks import agreed
from lit_semantic_peft.data.scoring import default_device
from lit_semantic_peft.data.self_checks import verdict_cache
from lit_semantic_peft.data.settings import ConfiguredDataModule, FactsSetting
from lit_semantic_peft.data.situation import check_adapter, check_trainer, prefix_tree_setting
from lit_semantic_peft.data.steps import planned_steps
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.plan import EvaluationPlan
from lit_semantic_peft.evaluation.questions import Question, prompt_questions
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.tokens import Batch, FactEncoder

T = TypeVar("T")

_ENCODING, _FORMS, _SELECTION = EncodingPlan(), FormsPlan(), SelectionPlan()
_BATCHES, _EVALUATION = BatchPlan(), EvaluationPlan()


class KnowledgeDataModule(ConfiguredDataModule):
    """Reads facts, measures how far each is from the base model, filters and weights them, and plans the batches.

    Filtering happens in `setup`. Scores come from a cache keyed by everything they depend on. The ranks share the
    computation of missing scores, and a killed job resumes from the complete parts. Dropped facts are evaluated and
    reported too.

    Args:
        facts: A built-in set (`world`, `counterfactual`, `fictional`), a file (.jsonl, .csv, .parquet, each also
            .gz where it is text), a folder of `datasets`, or a Hub data set; from Python whatever `read_facts` takes.
        num_facts: How many facts to take, chosen by `seed`; None for all (`fictional`: how many to make up).
        contradictions: `error` refuses facts with the same prompt and different targets, `keep` takes them.
        dataset_split: Which split of a `datasets` folder or Hub data set.
        encoding: How facts become tokens.
        forms: In which forms a fact is taught beside its own prompt.
        selection: Which facts are trained, and what each of them weighs.
        batches: Which facts run together.
        evaluation: What the final evaluation asks beside the facts themselves.
        seed: Of the choice of facts and of their order.
        prompts: Free prompts for `predict`; the facts themselves where None.
        max_new_tokens: Longest answer to a free prompt.
        cache_dir: Where scores are kept; the user's cache where None.
        base_model: The model that facts are measured against. None for that of the trainer's module; another one is an
            error. Required without a trainer.
        self_check: Whether the fast ways to run a model are checked to be exact for it before it is scored or trained.

    Raises:
        InputError: If a setting is out of its range; from `setup`, if the facts cannot be read, tokenized, or filtered
            as asked, or would be measured against another model than the one that is trained.
    """

    @refuse_moved("data")
    def __init__(
        self,
        facts: FactsSetting = "world",
        num_facts: int | None = None,
        contradictions: Literal["error", "keep"] = "error",
        dataset_split: str = "train",
        encoding: EncodingPlan = _ENCODING,
        forms: FormsPlan = _FORMS,
        selection: SelectionPlan = _SELECTION,
        batches: BatchPlan = _BATCHES,
        evaluation: EvaluationPlan = _EVALUATION,
        seed: int = 0,
        prompts: list[str] | None = None,
        max_new_tokens: int = 32,
        cache_dir: str | None = None,
        base_model: BaseModel | str | None = None,
        self_check: bool = True,
    ) -> None:
        super().__init__()
        require_instances("prompts", prompts, str, "'The capital of France is'")
        require_whole_number("max_new_tokens", max_new_tokens, 1)
        cache = ContentCache(cache_dir or cache_folder() / "scores")
        self.preparation = Preparation(
            facts, num_facts, contradictions, dataset_split, seed,
            encoding, forms, selection, batches, evaluation, cache,
            verdict_cache(cache_dir) if self_check else None,
        )  # fmt: skip
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.base_model = None if base_model is None else BaseModel.of(base_model)
        self.answer_cache = ContentCache(Path(cache_dir or cache_folder()) / "answers")
        self.retain_cache = ContentCache(Path(cache_dir or cache_folder()) / "retained")
        self.stopwatch = Stopwatch()
        self._base: BaseModel | None = None
        self._encoder: FactEncoder | None = None
        self._read: ReadFacts | None = None
        self._prepared: PreparedFacts | None = None
        self._questions: list[Question] | None = None
        self._position = (0, 0)

    @property
    def prepared(self) -> PreparedFacts:
        """What `setup` decided; a RuntimeError before it."""
        return _after_setup(self._prepared)

    @property
    def encoder(self) -> FactEncoder:
        """How facts become the base model's tokens; a RuntimeError before `setup`."""
        return _after_setup(self._encoder)

    @override
    def prepare_data(self) -> None:
        """Downloads or converts the base model, in one process per machine, before `setup` needs it in all."""
        with self.stopwatch.during("setup"), suppress(InputError):  # `setup` fails on all ranks
            self._find_base_model()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Reads, tokenizes, scores, filters and weights the facts, once for a base model; none for free prompts."""
        if stage == "fit":
            # Forgets an earlier training; a checkpoint is read after this.
            self._position, self.second_pass = (0, 0), None
        if self.trainer and stage:
            check_trainer(self.trainer, stage, self.preparation)
        with self.stopwatch.during("setup"):
            base = agreed(self._find_base_model)
            if self._base is None or not self._base.is_same_as(base):
                self._base, self._prepared, self._questions = base, None, None
                module = self.trainer.lightning_module if self.trainer else None
                self._encoder = agreed(lambda: encoder_of(base, self.encoding, module))
            encoder = self.encoder
            if self._prepared is None and not (stage == "predict" and self.prompts):
                self._read = read = agreed(lambda: self.preparation.read(encoder))
                check_adapter(self.trainer)
                how = self.device, self.stopwatch, prefix_tree_setting(self.trainer)
                self._prepared = self.preparation.prepare(read, base, encoder, *how)

    def _find_base_model(self) -> BaseModel:
        return base_model_of(self.base_model, self.trainer.lightning_module if self.trainer else None)

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of the facts of the current epoch; the order depends on `seed` and epoch only."""
        plan = planned_steps(self.prepared, self.batches, self.seed, self.trainer, self.second_pass)
        # Lightning asks for the length before it sets the epoch.
        plan.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        plan.resume(*self._position)
        return loader(FactBatches(self.prepared, self.encoder.pad_id, with_end=True), plan)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        return validation_loader(self.prepared, self.encoder.pad_id, self.batches, self.seed, **self._ranks)

    @override
    def test_dataloader(self) -> DataLoader[list[Question]]:
        return question_loader(self.questions, self.batches, **self._ranks)

    @override
    def predict_dataloader(self) -> DataLoader[list[Question]]:
        """The free prompts, or the facts' own prompts where there are none."""
        if self.prompts:
            questions = prompt_questions(self.prompts, self.encoder, self.max_new_tokens)
        else:
            questions = own_questions(self.prepared, self.encoder)
        return question_loader(questions, self.batches, **self._ranks)

    @property
    def questions(self) -> list[Question]:
        """What the final evaluation asks: facts and probes, dialogues, and what must not change."""
        if self._questions is None:
            read = _after_setup(self._read)
            self._questions = final_questions(
                read.questions, read.texts, self.prepared, self.encoder, self.evaluation, self.seed
            )
        return self._questions

    def retain(self, rows: Sequence[int]) -> None:
        """Notes the indices of facts that training retains (KL), so that retention is not measured on them."""
        self._prepared = replace(self.prepared, retained_index=tuple(rows))
        self._questions = None

    def answer_manifest(self, version: int) -> dict[str, Any]:
        """Everything that the base model's answers depend on, as plain data; `version` is the evaluation's."""
        return answer_manifest(
            self.questions,
            self.evaluation,
            _after_setup(self._base),
            self.encoder,
            self.distances,
            eval_batch_size=self.batches.eval_batch_size,
            num_processes=self._ranks["world_size"],
            device=self.device.type,
            precision=str(self.trainer.precision) if self.trainer else "32-true",
            evaluation_version=version,
            self_check=self.preparation.self_checks is not None,
        )

    def training_batches(self, rows: Sequence[int], batch_size: int, *, with_end: bool = True) -> list[Batch]:
        """Some facts by their own prompts, in the given order, for measurements beside the training.

        Args:
            rows: Fact indices.
            batch_size: Facts per batch.
            with_end: Whether the end token is a target too.
        """
        return fact_batches(self.prepared, rows, batch_size, self.encoder.pad_id, with_end=with_end)

    @override
    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epoch, progress = self.trainer.current_epoch, loop.epoch_progress.current
        is_within_epoch = epoch == progress.completed < progress.ready
        return {"epoch": epoch, "num_done": loop.epoch_loop.batch_progress.current.ready if is_within_epoch else 0}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = (state_dict["epoch"], state_dict["num_done"])

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if isinstance(batch, Batch) else batch  # questions are text and stay on the CPU

    @property
    def device(self) -> torch.device:
        """Where the base model is run: the trainer's device, else the first GPU, else the CPU."""
        return default_device() if self.trainer is None else self.trainer.strategy.root_device

    @property
    def _ranks(self) -> dict[str, int]:
        trainer = self.trainer
        return {"world_size": trainer.world_size if trainer else 1, "rank": trainer.global_rank if trainer else 0}


def _after_setup(value: T | None) -> T:
    if value is None:
        raise RuntimeError("KnowledgeDataModule.setup() has not run yet")
    return value
