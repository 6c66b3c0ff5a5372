"""The contenders of `training_speed`, each in a process of its own: ours, Hugging Face Trainer + peft, and TRL."""

import dataclasses
import gc
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import disable_progress_bars
from experiments.benchmarks import roofline
from experiments.benchmarks.measured import peak_memory_gb
from lit_semantic_peft.models import BaseDtype

Precision = Literal["bf16-mixed", "32-true"]

LEARNING_RATE = 2e-3


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        trainer: `ours`, `hf` or `trl`.
        is_tuned: Whether a peer gets the settings that help it most.
        base_dtype: Type of the base weights.
        upper_half: Whether only the upper half of the layers is adapted.
        reuse_frozen_layers: Whether ours runs the layers below only once for each fact.
        prefix_tree: Whether ours runs prefix trees; None where they are exact.
    """

    trainer: str
    is_tuned: bool = False
    base_dtype: BaseDtype = "float32"
    upper_half: bool = False
    reuse_frozen_layers: bool = False
    prefix_tree: bool | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all contenders share."""

    facts: str
    num_facts: int
    base_model: str
    precision: Precision
    micro_batch_size: int
    epochs: int
    reuse_epochs: int


@dataclasses.dataclass(frozen=True)
class Training:
    """The results of one training.

    Attributes:
        seconds: From the first step to the last.
        num_steps: Optimizer steps.
        loss: Mean over the steps.
        peak_memory_gb: Within these seconds, GB.
        gflop: Operations of its matrix products and attention, 10⁹; None where they were not counted.
        peak_gflops: Of a large product in the same process right before, GFLOP/s.
    """

    seconds: float
    num_steps: int
    loss: float
    peak_memory_gb: float
    gflop: float | None = None
    peak_gflops: float = 0.0


class Watch:
    """Seconds and peak memory between the first and the last step of a training."""

    def start(self) -> None:
        """Called when the first step is about to be taken."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (Linux)
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Called after the last step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._started
        if torch.cuda.is_available():
            self.peak_memory_gb = torch.cuda.max_memory_allocated() / 1e9
        else:
            self.peak_memory_gb = peak_memory_gb()


def serve(connection: Connection, contender: Contender, settings: Settings) -> None:
    """A contender's process: trains on request.

    Args:
        connection: Receives keyword arguments of `trained`, or None for the end; sends a `Training`.
        contender: How to train.
        settings: On what.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bars()
    data = token_mean_facts(settings)
    while (order := connection.recv()) is not None:
        connection.send(trained(contender, settings, data, **order))
        gc.collect()  # trainers are cycles that would keep their model into the next training


def trained(contender: Contender, settings: Settings, data: Any, *, counts: bool = False, **order: Any) -> Training:
    """Trains once, after a look at how fast this process multiplies matrices.

    Args:
        contender: How to train.
        settings: On what.
        data: As `token_mean_facts` gives it.
        counts: Whether operations are counted, which takes time.
        order: Keyword arguments of `train_ours`, `train_hf` and `train_trl`.
    """
    train = {"ours": train_ours, "hf": train_hf, "trl": train_trl}[contender.trainer]
    torch.manual_seed(0)
    peak = roofline.peak_gflops(torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32)
    with roofline.counter() if counts else nullcontext() as counted:
        training = train(contender, settings, data, **order)
    gflop = None if counted is None else counted.get_total_flops() / 1e9
    return dataclasses.replace(training, gflop=gflop, peak_gflops=peak)


def token_mean_facts(settings: Settings) -> Any:
    """The data module of the facts, with which the loss of ours is the peers'.

    Args:
        settings: What to read.
    """
    from lit_semantic_peft.data import BatchPlan, KnowledgeDataModule, PreparedFacts
    from lit_semantic_peft.evaluation import EvaluationPlan

    class TokenMeanFacts(KnowledgeDataModule):
        """Facts weighted by their target tokens: the objective becomes the mean over tokens, as the peers have it."""

        num_trained: int | None = None
        whole: PreparedFacts | None = None

        @property
        def prepared(self) -> PreparedFacts:
            # Kept, because `retain` stores what it reads here, which is the restricted copy.
            prepared = self.whole = self.whole or super().prepared
            kept = prepared.kept_index[: self.num_trained]
            is_kept = prepared.is_kept & False
            is_kept[kept] = True
            num_tokens = [one.num_target_tokens + len(one.end_ids) for one in prepared.encoded]
            weights = dataclasses.replace(prepared.weights, start=is_kept * num_tokens)
            return dataclasses.replace(prepared, is_kept=is_kept, weights=weights)

    data = TokenMeanFacts(
        facts=settings.facts,
        num_facts=settings.num_facts,
        batches=BatchPlan(micro_batch_size=settings.micro_batch_size),
        base_model=settings.base_model,
        evaluation=EvaluationPlan(probes=[], retention=False),
    )
    data.setup("fit")
    return data


def lora(contender: Contender, num_layers: int) -> Any:
    """LoRA of rank 8 on all linear layers, or on those of the upper half."""
    from peft import LoraConfig

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    upper = list(range(num_layers // 2, num_layers)) if contender.upper_half else None
    return LoraConfig(r=8, lora_alpha=16, target_modules=names, layers_to_transform=upper, task_type="CAUSAL_LM")


def train_ours(
    contender: Contender, settings: Settings, data: Any, *, num_facts: int | None, epochs: int, accumulate: int = 1
) -> Training:
    """Trains with this package, as `fit` does it, but for validation and files."""
    from lightning.pytorch import Callback, Trainer
    from lit_semantic_peft.models import BaseModel
    from lit_semantic_peft.training import SemanticPeftModule
    from transformers import AutoConfig

    watch = Watch()
    losses: list[float] = []

    class Record(Callback):
        def on_train_start(self, *_: Any) -> None:
            watch.start()

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step > len(losses):
                losses.append(float(trainer.callback_metrics["train/loss"]))

        def on_train_end(self, *_: Any) -> None:
            watch.stop()

    data.num_trained = num_facts
    base_model = data.base_model = BaseModel(settings.base_model, dtype=contender.base_dtype)
    num_layers = AutoConfig.from_pretrained(base_model.source.folder).num_hidden_layers
    module = SemanticPeftModule(
        base_model=base_model,
        peft_config=lora(contender, num_layers),
        optimizer=partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=0.0),
        schedule="constant",
        warmup_ratio=0.0,
        reuse_frozen_layers=contender.reuse_frozen_layers,
        prefix_tree=contender.prefix_tree,
    )
    Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        precision=settings.precision,
        gradient_clip_val=1.0,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[Record()],
    ).fit(module, datamodule=data)
    data.trainer = None
    return Training(watch.seconds, len(losses), statistics.fmean(losses), watch.peak_memory_gb)


def train_hf(
    contender: Contender, settings: Settings, data: Any, *, num_facts: int | None, epochs: int, accumulate: int = 1
) -> Training:
    """Trains with Hugging Face's Trainer."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=peft_model(contender, settings),
            args=TrainingArguments(folder, **_arguments(contender, settings, epochs, accumulate)),
            train_dataset=_dataset(data, num_facts),
            data_collator=DataCollatorForSeq2Seq(data.encoder.tokenizer, label_pad_token_id=-100),
        )
        return _watched(trainer)


def train_trl(
    contender: Contender, settings: Settings, data: Any, *, num_facts: int | None, epochs: int, accumulate: int = 1
) -> Training:
    """Trains with TRL's SFTTrainer; the labels of the prompt are masked, so only completions are learned."""
    from trl import SFTConfig, SFTTrainer

    more = {"gradient_checkpointing": False} if contender.is_tuned else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=peft_model(contender, settings),
            args=SFTConfig(folder, **_arguments(contender, settings, epochs, accumulate), **more),
            train_dataset=_dataset(data, num_facts),
            processing_class=data.encoder.tokenizer,
        )
        return _watched(trainer)


def _arguments(contender: Contender, settings: Settings, epochs: int, accumulate: int) -> dict[str, Any]:
    return {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": settings.precision == "bf16-mixed",
        "use_cpu": not torch.cuda.is_available(),
        "train_sampling_strategy": "group_by_length" if contender.is_tuned else "random",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def peft_model(contender: Contender, settings: Settings) -> Any:
    """The base model with a contender's adapter."""
    from lit_semantic_peft.models import BaseModel, attach_adapter

    base = BaseModel(settings.base_model, dtype=contender.base_dtype).load()
    return attach_adapter(base, lora(contender, base.config.num_hidden_layers))


def _dataset(data: Any, num_facts: int | None) -> Any:
    from datasets import Dataset

    rows = [data.prepared.encoded[row] for row in data.prepared.kept_index[:num_facts]]
    ids = [[*row.prompt_ids, *row.target_ids, *row.end_ids] for row in rows]
    labels = [[-100] * len(row.prompt_ids) + [*row.target_ids, *row.end_ids] for row in rows]
    masks = [[1] * len(row) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "attention_mask": masks})


def _watched(trainer: Any) -> Training:
    from transformers import PrinterCallback, TrainerCallback

    watch = Watch()

    class Record(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.start()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            watch.stop()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Record())
    outcome = trainer.train()
    return Training(watch.seconds, outcome.global_step, float(outcome.training_loss), watch.peak_memory_gb)


class Process:
    """A contender in its own process."""

    def __init__(self, name: str, contender: Contender, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, contender, settings), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def train(self, **order: Any) -> Training:
        """Trains and waits; a process that dies ends the benchmark with an EOFError."""
        self._connection.send(order)
        answer: Training = self._connection.recv()
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self._process.join()
