"""How fast training is: ours, Hugging Face Trainer + peft, and TRL's SFTTrainer, interleaved in one command.

    python -m experiments.benchmarks.training_speed [--precision bf16-mixed] [--repetitions 3]
    python -m experiments.benchmarks.training_speed --questions  # facts whose prompts are their questions
    python -m experiments.benchmarks.training_speed --online --num_facts 64  # what online weights add to our own step

All train the same token ids of the same facts with the same base model, LoRA, optimizer, precision, micro-batch and
number of steps, and minimise the same loss, the mean over the target tokens of a step; ours with prefix trees and
without. Before anything is timed, each takes one step over the same facts, and the losses of that step must agree.

Each contender lives in a process of its own, so that its peak memory is its own; one trains at a time. The peers run
stock (their defaults) and tuned: batches of similar length, no recomputation of activations, base weights in bfloat16
where the precision is bf16-mixed. TRL comes with `pip install 'lit-semantic-peft[benchmarks]'`; without it its rows are
left out.

The roofline: an epoch that is not timed counts the operations of each contender's matrix products and attention; right
before each training the same process times a large product. Their share is what the training makes of this machine.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from experiments.benchmarks.measured import keep, rotated, spread
from experiments.benchmarks.online_weighting import online_cost
from experiments.benchmarks.training_contenders import (
    Contender,
    Precision,
    Process,
    Settings,
    Training,
    token_mean_facts,
)
from lit_semantic_peft.models import BaseDtype
from rich.console import Console
from rich.table import Table

ROOFLINE = ("GFLOP a fact", "of peak")
AGREEMENT = 1e-3
"""Largest relative difference of the first step's losses; bfloat16 gets ten times as much."""


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


def measure(settings: Settings, repetitions: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs all contenders, or only those named, in turn, several times.

    Raises:
        SystemExit: If the losses of the first step do not agree, or a contender takes more or fewer steps than planned.
    """
    console = Console(stderr=True)
    chosen = {name: one for name, one in contenders(settings.precision).items() if only is None or name in only}
    if not find_spec("trl"):
        console.print("TRL is not installed and is left out: pip install 'lit-semantic-peft\\[benchmarks]'")
    num_facts = len(token_mean_facts(settings).prepared.kept_index)  # scores are in the cache from here on
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
    epoch = {
        name: None if chosen[name].reuse_frozen_layers else process.train(num_facts=None, epochs=1, counts=True).gflop
        for name, process in processes.items()  # with reuse its first epoch is no other's
    }
    trainings: dict[str, list[Training]] = {name: [] for name in chosen}
    for repetition in range(repetitions):
        for name in rotated(list(chosen), repetition):
            epochs = settings.reuse_epochs if chosen[name].upper_half else settings.epochs
            training = processes[name].train(num_facts=None, epochs=epochs)
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
            "peak_gflops": [one.peak_gflops for one in trainings[name]],
            "gflop_per_fact": None if (gflop := epoch[name]) is None else gflop / num_facts,
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
        found[f"{mine} / {other}"] = spread(quotients)
    return found


def shares_of_peak(row: dict[str, Any]) -> list[float] | None:
    """What a contender made of its process's peak in each repetition, in [0, 1]; None where nothing was counted.

    Args:
        row: Of the result's `contenders`.
    """
    if row["gflop_per_fact"] is None:
        return None
    pairs = zip(row["facts_per_s"], row["peak_gflops"], strict=True)
    return [facts_per_s * row["gflop_per_fact"] / peak for facts_per_s, peak in pairs]


def show(result: dict[str, Any]) -> None:
    """Prints both tables."""
    table = Table("contender", "facts/s (median)", "min–max", "peak GB", "first loss", "mean loss", *ROOFLINE)
    for name, row in result["contenders"].items():
        speed, shares = row["facts_per_s"], shares_of_peak(row)
        table.add_row(
            name,
            f"{statistics.median(speed):.1f}",
            f"{min(speed):.1f}–{max(speed):.1f}",
            f"{row['peak_memory_gb']:.2f}",
            f"{row['first_step_loss']:.4f}",
            f"{row['mean_loss']:.4f}",
            *(["", ""] if shares is None else [f"{row['gflop_per_fact']:.2f}", f"{statistics.median(shares):.0%}"]),
        )
    console = Console()
    console.print(table)
    peak = spread([peak for row in result["contenders"].values() for peak in row["peak_gflops"]])
    console.print(f"a large product: {peak['median']:.0f} GFLOP/s ({peak['min']:.0f}–{peak['max']:.0f})")
    table = Table("ratio of facts/s", "median", "min–max")
    for name, one in result["ratios"].items():
        table.add_row(name, f"{one['median']:.2f}", f"{one['min']:.2f}–{one['max']:.2f}")
    console.print(table)


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
