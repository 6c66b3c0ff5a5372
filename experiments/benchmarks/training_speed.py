"""How fast training is: ours, Hugging Face Trainer + peft, and TRL's SFTTrainer, interleaved in one command.

    python -m experiments.benchmarks.training_speed [--precision bf16-mixed] [--repetitions 3]
    python -m experiments.benchmarks.training_speed --questions  # facts whose prompts are their questions
    python -m experiments.benchmarks.training_speed --online --num_facts 64  # what online weights add to our own step

All train the same token ids of the same facts with the same base model, LoRA, optimizer, precision, micro-batch and
number of steps, and minimise the same loss, the mean over the target tokens of a step; ours with prefix trees and
without. Before anything is timed, each
takes one step over the same facts, and the losses of that step must agree.

Each contender lives in a process of its own, so that its peak memory is its own; one trains at a time. The peers run
stock (their defaults) and tuned: batches of similar length, no recomputation of activations, base weights in bfloat16
where the precision is bf16-mixed. TRL comes with `pip install 'lit-semantic-peft[benchmarks]'`; without it its rows are
left out.
"""

import argparse
import dataclasses
import gc
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import disable_progress_bars
from experiments.benchmarks.measured import keep, peak_memory_gb
from lit_semantic_peft.models import BaseDtype
from rich.console import Console
from rich.table import Table

Precision = Literal["bf16-mixed", "32-true"]

LEARNING_RATE = 2e-3
AGREEMENT = 1e-3
"""Largest relative difference of the first step's losses; bfloat16 gets ten times as much."""


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
    """The results of one training."""

    seconds: float
    num_steps: int
    loss: float
    peak_memory_gb: float


def contenders(precision: Precision) -> dict[str, Contender]:
    """The contenders by name; without autocast there is no bfloat16 base."""
    dtype: BaseDtype = "bfloat16" if precision == "bf16-mixed" else "float32"
    ours = {"ours": Contender("ours"), "ours, padded": Contender("ours", prefix_tree=False)}
    if dtype == "bfloat16":
        ours["ours, bf16 base"] = Contender("ours", base_dtype=dtype)
    peers = {
        "HF Trainer": Contender("hf"),
        "TRL": Contender("trl"),
        "HF Trainer, tuned": Contender("hf", is_tuned=True, base_dtype=dtype),
        "TRL, tuned": Contender("trl", is_tuned=True, base_dtype=dtype),
    }
    upper = {
        "ours, upper half": Contender("ours", base_dtype=dtype, upper_half=True),
        "ours, upper half, reuse": Contender("ours", base_dtype=dtype, upper_half=True, reuse_frozen_layers=True),
    }
    return ours | {name: one for name, one in peers.items() if one.trainer != "trl" or find_spec("trl")} | upper


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
        connection: Receives keyword arguments of `train`, or None for the end; sends a `Training`.
        contender: How to train.
        settings: On what.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bars()
    data = _token_mean_facts(settings)
    train = {"ours": train_ours, "hf": train_hf, "trl": train_trl}[contender.trainer]
    while (order := connection.recv()) is not None:
        torch.manual_seed(0)
        connection.send(train(contender, settings, data, **order))
        gc.collect()  # trainers are cycles that would keep their model into the next training


def _token_mean_facts(settings: Settings) -> Any:
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


def as_questions(facts: str, num_facts: int, folder: Path) -> Path:
    """A file of the facts that have a question, which becomes their prompt.

    Args:
        facts: As `read_facts` takes them.
        num_facts: How many to take.
        folder: Where the file is written.

    Raises:
        SystemExit: If none has a question.
    """
    from lit_semantic_peft.facts import read_facts
    from lit_semantic_peft.facts.forms import asked_question

    asked = [(fact, asked_question(fact)) for fact in read_facts(facts, num_facts=num_facts).facts]
    rows = [
        {"id": fact.id, "prompt": prompt, "target": fact.target, "relation": fact.relation}
        for fact, prompt in asked
        if prompt
    ]
    if not rows:
        raise SystemExit(f"No fact of {facts} has a question.")
    path = folder / f"{Path(facts).name.partition('.')[0]}_questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lora(contender: Contender, num_layers: int) -> Any:
    """LoRA of rank 8 on all linear layers, or on those of the upper half."""
    from peft import LoraConfig

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    upper = list(range(num_layers // 2, num_layers)) if contender.upper_half else None
    return LoraConfig(r=8, lora_alpha=16, target_modules=names, layers_to_transform=upper, task_type="CAUSAL_LM")


def train_ours(
    contender: Contender, settings: Settings, data: Any, *, num_facts: int | None, epochs: int, accumulate: int
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
    contender: Contender, settings: Settings, data: Any, *, num_facts: int | None, epochs: int, accumulate: int
) -> Training:
    """Trains with Hugging Face's Trainer."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=_peft_model(contender, settings),
            args=TrainingArguments(folder, **_arguments(contender, settings, epochs, accumulate)),
            train_dataset=_dataset(data, num_facts),
            data_collator=DataCollatorForSeq2Seq(data.encoder.tokenizer, label_pad_token_id=-100),
        )
        return _watched(trainer)


def train_trl(
    contender: Contender, settings: Settings, data: Any, *, num_facts: int | None, epochs: int, accumulate: int
) -> Training:
    """Trains with TRL's SFTTrainer; the labels of the prompt are masked, so only completions are learned."""
    from trl import SFTConfig, SFTTrainer

    more = {"gradient_checkpointing": False} if contender.is_tuned else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=_peft_model(contender, settings),
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


def _peft_model(contender: Contender, settings: Settings) -> Any:
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


def measure(settings: Settings, repetitions: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs all contenders, or only those named, in turn, several times.

    Raises:
        SystemExit: If the losses of the first step do not agree, or a contender takes more or fewer steps than planned.
    """
    console = Console(stderr=True)
    chosen = {name: one for name, one in contenders(settings.precision).items() if only is None or name in only}
    if not find_spec("trl"):
        console.print("TRL is not installed and is left out: pip install 'lit-semantic-peft\\[benchmarks]'")
    num_facts = len(_token_mean_facts(settings).prepared.kept_index)  # scores are in the cache from here on
    processes = {name: Process(name, contender, settings) for name, contender in chosen.items()}
    num_agreement = min(2, num_facts // settings.micro_batch_size) * settings.micro_batch_size or num_facts
    accumulate = -(-num_agreement // settings.micro_batch_size)
    first = {
        name: process.train(num_facts=num_agreement, epochs=1, accumulate=accumulate).loss
        for name, process in processes.items()
    }
    tolerance = AGREEMENT * (10 if settings.precision == "bf16-mixed" else 1)
    if max(first.values()) - min(first.values()) > tolerance * min(first.values()):
        raise SystemExit(f"The losses of the same first step differ, so the objectives are not the same: {first}")
    trainings: dict[str, list[Training]] = {name: [] for name in chosen}
    for repetition in range(repetitions):
        for name in _rotated(list(chosen), repetition):
            epochs = settings.reuse_epochs if chosen[name].upper_half else settings.epochs
            training = processes[name].train(num_facts=None, epochs=epochs, accumulate=1)
            planned = epochs * -(-num_facts // settings.micro_batch_size)
            if training.num_steps != planned:
                raise SystemExit(f"{name} took {training.num_steps} steps instead of {planned}; nothing is compared.")
            trainings[name].append(training)
            console.print(f"{repetition + 1}/{repetitions} {name}: {training.seconds:.1f} s")
    for process in processes.values():
        process.stop()
    rows = {
        name: {
            **dataclasses.asdict(chosen[name]),
            "facts_per_s": [
                num_facts * (settings.reuse_epochs if chosen[name].upper_half else settings.epochs) / one.seconds
                for one in trainings[name]
            ],
            "peak_memory_gb": statistics.median(one.peak_memory_gb for one in trainings[name]),
            "first_step_loss": first[name],
            "mean_loss": statistics.median(one.loss for one in trainings[name]),
        }
        for name in chosen
    }
    return {
        "settings": dataclasses.asdict(settings) | {"facts": Path(settings.facts).name},
        "num_facts": num_facts,
        "contenders": rows,
        "ratios": ratios(rows),
    }


def ratios(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Facts/s of one contender over another's: median, least and most over the repetitions, which are paired."""
    fast = "ours, bf16 base" if "ours, bf16 base" in rows else "ours"
    ours = dict.fromkeys(["ours", fast])
    pairs = [(mine, peer) for peer in ("HF Trainer", "TRL") for mine in ours]
    pairs += [(fast, "HF Trainer, tuned"), (fast, "TRL, tuned"), ("ours, upper half, reuse", "ours, upper half")]
    pairs += [("ours", "ours, padded")]
    found: dict[str, dict[str, float]] = {}
    for mine, other in pairs:
        if mine not in rows or other not in rows:
            continue
        quotients = [a / b for a, b in zip(rows[mine]["facts_per_s"], rows[other]["facts_per_s"], strict=True)]
        found[f"{mine} / {other}"] = {
            "median": statistics.median(quotients),
            "min": min(quotients),
            "max": max(quotients),
        }
    return found


def _rotated(names: list[str], by: int) -> list[str]:
    at = by % len(names)
    return names[at:] + names[:at]


def show(result: dict[str, Any]) -> None:
    """Prints both tables."""
    table = Table("contender", "facts/s (median)", "min–max", "peak GB", "first loss", "mean loss")
    for name, row in result["contenders"].items():
        speed = row["facts_per_s"]
        table.add_row(
            name,
            f"{statistics.median(speed):.1f}",
            f"{min(speed):.1f}–{max(speed):.1f}",
            f"{row['peak_memory_gb']:.2f}",
            f"{row['first_step_loss']:.4f}",
            f"{row['mean_loss']:.4f}",
        )
    console = Console()
    console.print(table)
    table = Table("ratio of facts/s", "median", "min–max")
    for name, one in result["ratios"].items():
        table.add_row(name, f"{one['median']:.2f}", f"{one['min']:.2f}–{one['max']:.2f}")
    console.print(table)


def online_cost(settings: Settings, repetitions: int) -> dict[str, Any]:
    """Processor seconds of the same training steps with given and with online weights, each micro-batch in turn.

    One adapter learns throughout, so that both ways meet the same weights but for the steps in between.
    """
    from lit_semantic_peft.models import fact_nll
    from lit_semantic_peft.semantics import ExpectedEmbeddingDistance, Online, Proximity
    from lit_semantic_peft.semantics.step_losses import losses_and_online_weights

    data = _token_mean_facts(settings)
    model = _peft_model(Contender("ours"), settings).train()
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    weighting, distance = Online(Proximity()), ExpectedEmbeddingDistance()

    def step(batch: Any, is_online: bool) -> None:
        if is_online:
            nll, weight = losses_and_online_weights(model, batch, weighting, None, distance, has_end=True)
        else:
            nll, weight = fact_nll(model, batch), batch.loss_weight
        assert weight is not None
        ((weight * nll).sum() / weight.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    batches = data.training_batches(data.prepared.kept_index, settings.micro_batch_size)
    seconds: dict[str, list[float]] = {"given": [], "online": []}
    for repetition in range(repetitions + 1):  # the first warms up
        spent = dict.fromkeys(seconds, 0.0)
        for batch in batches:
            for way in _rotated(list(seconds), repetition):
                begun = time.process_time()
                step(batch, way == "online")
                spent[way] += time.process_time() - begun
        if repetition:
            for way, value in spent.items():
                seconds[way].append(value)
    added = [online / given - 1 for given, online in zip(*seconds.values(), strict=True)]
    return {
        "num_facts": len(data.prepared.kept_index),
        "processor_seconds": seconds,
        "added_by_online": {"median": statistics.median(added), "min": min(added), "max": max(added)},
    }


def best_precision() -> str:
    """`bf16-mixed` where the device multiplies bfloat16 in hardware, else `32-true`."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bfloat16 else "32-true"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes `experiments/results/training_speed_PRECISION.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", default="counterfactual")
    parser.add_argument("--num_facts", type=int, default=256)
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--precision", choices=get_args(Precision), default=best_precision())
    parser.add_argument("--micro_batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--reuse_epochs", type=int, default=8, help="epochs of the two that adapt the upper half")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="some of the contenders: --only ours 'HF Trainer'")
    parser.add_argument("--output", type=Path, help="folder of the result; experiments/results where left out")
    parser.add_argument("--questions", action="store_true", help="each fact's question is its prompt")
    parser.add_argument("--online", action="store_true", help="only what online weights add to a step of ours")
    options = vars(parser.parse_args(arguments))
    output, repetitions, only, online, questions = (
        options.pop(name) for name in ("output", "repetitions", "only", "online", "questions")
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if online:
        result = online_cost(Settings(**options), repetitions)
        added = result["added_by_online"]
        print(f"online weights add {added['median']:.1%} ({added['min']:.1%} to {added['max']:.1%}) to a step")
        print(keep("online_weighting", result, output))
        return
    with tempfile.TemporaryDirectory() as folder:
        if questions:
            options["facts"] = str(as_questions(options["facts"], options["num_facts"], Path(folder)))
        result = measure(Settings(**options), repetitions, only)
    show(result)
    kind = "_questions" if questions else ""
    some = "_some" if only else ""  # never in place of the result of all
    print(keep(f"training_speed_{options['precision']}{kind}{some}", result, output))


if __name__ == "__main__":
    main()
