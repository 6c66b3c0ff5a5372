"""Lightning's Trainer with one more verb: `score` looks at facts without training on them."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

from lit_semantic_peft.arguments import require_text
from lit_semantic_peft.callbacks import AnswerWriter, Conversation
from lit_semantic_peft.cli.ownership import OwnedFolder
from lit_semantic_peft.cli.score_folder import WarmUp, score_into
from lit_semantic_peft.cli.score_tables import print_scores
from lit_semantic_peft.compatibility import refuse_incompatible
from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.data.situation import situation_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import names_of
from lit_semantic_peft.models import traits_of
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.terminal import TextConsole
from lit_semantic_peft.training import SemanticPeftModule

_NOBODY_READS = "."
"""The prompt that Lightning's loop answers once a conversation has ended."""


class KnowledgeTrainer(Trainer):
    """`lightning.pytorch.Trainer` plus `score`, and a `predict` that can converse."""

    @override
    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        chat: bool = False,
    ) -> Any:
        """Answers the facts or free prompts, or opens a conversation.

        Args:
            model: The module.
            dataloaders: Of Lightning; the data module has them.
            datamodule: Gives the questions.
            return_predictions: Whether the answers are returned.
            ckpt_path: `last`, or a checkpoint's file.
            weights_only: Whether a checkpoint may hold nothing but tensors and plain values.
            chat: Ask the taught model in the terminal, line by line, with the base model's answers beside; nothing is
                written.

        Returns:
            The answers; None after a conversation.

        Raises:
            InputError: If a conversation is to run in several processes.
        """
        if not chat:
            return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)
        if self.world_size > 1:
            raise InputError(f"`--chat` runs in one process, got {self.world_size}. Set `--trainer.devices 1`.")
        assert isinstance(datamodule, KnowledgeDataModule)
        datamodule.prompts = [_NOBODY_READS]  # so that no facts are read and scored
        callbacks: list[Callback] = self.callbacks  # type: ignore[has-type]
        writers = (AnswerWriter, ProgressBar)
        self.callbacks = [Conversation(), *(one for one in callbacks if not isinstance(one, writers))]
        super().predict(model, dataloaders, datamodule, False, ckpt_path, weights_only)
        return None

    def score(
        self,
        model: SemanticPeftModule,
        datamodule: KnowledgeDataModule,
        output: str | None = None,
        warmup_steps: int = 0,
        warmup_learning_rate: float | None = None,
        num_conflict_facts: int = 64,
        run: str | None = None,
    ) -> PreparedFacts:
        """Measures how far each fact is from the model, what the filter would keep and why, and what is suspicious.

        Runs in one process, on the trainer's device. Facts with the same prompt and different targets are listed here
        instead of refused; so are filters that leave no fact, unless there is a warm-up. Module and data module are not
        changed.

        Args:
            model: Gives the base model and, for a warm-up, the adapter's configuration.
            datamodule: Gives the facts, distances, filters and weighting.
            output: Folder for `facts.parquet`, `report.html`, `findings.json`, `distances.json`, `doubtful.json`,
                `plots/distances.png` and, after a warm-up, `interference.safetensors`; those of an earlier call are
                replaced. None for `score` in the trainer's `default_root_dir`.
            warmup_steps: Train a throw-away adapter for so many steps and measure which facts conflict. 0 measures no
                conflicts: before training there are hardly any.
            warmup_learning_rate: Constant learning rate of the warm-up; that of the adapter's type where None.
            num_conflict_facts: How many of the kept facts are measured then, chosen by the data's seed.
            run: Folder of a finished run on these facts and this base model: which distance predicts, from the base
                model alone, what the run learned.

        Returns:
            What the filters would keep, and what each fact would weigh.

        Raises:
            InputError: If the facts or settings cannot be used.
        """
        situation = situation_of(self, "score", datamodule.preparation)
        # Without a warm-up the module gives the base model alone.
        refuse_incompatible(model.complete_situation(situation) if warmup_steps else situation)
        if warmup_steps < 0:
            raise InputError(f"`warmup_steps` must be at least 0, got {warmup_steps}")
        if num_conflict_facts < 2:
            raise InputError(f"`num_conflict_facts` must be at least 2, got {num_conflict_facts}")
        require_text("output", output, "a folder")
        folder = RunFolder(RunFolder(self.default_root_dir).paths.score if output is None else output)
        if folder.paths.manifest.is_file() or folder.paths.checkpoints.is_dir():
            raise InputError(
                f"`output` {folder.path} is the folder of a run, whose table, summary and report would be overwritten. "
                "Choose another."
            )
        if warmup_learning_rate is None:
            warmup_learning_rate = traits_of(model.peft_config).learning_rate
        warm_up = WarmUp(warmup_steps, warmup_learning_rate, num_conflict_facts) if warmup_steps else None
        device = self.strategy.root_device
        with OwnedFolder(folder):
            folder.refuse_foreign_files(names_of(datamodule.preparation.facts) or [])
            found = score_into(folder, model, datamodule, device, warm_up, run)
        print_scores(found)
        TextConsole().print(f"Written: {folder.paths.report.absolute()}", soft_wrap=True)
        return found.prepared
