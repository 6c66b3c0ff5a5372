"""What the gradient matrix costs: time against training on the same facts, and memory over it.

    python -m experiments.benchmarks.interference_speed            # SmolLM2-135M, 256 facts; minutes on 2 cores
    python -m experiments.benchmarks.interference_speed --smoke    # a tiny random model, to see whether it runs

Times are interleaved: each round measures every way once. Memory is the peak of a fresh process that does one thing.
One backward per fact is measured on every fourth fact and multiplied by four.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from experiments.benchmarks.measured import keep, peak_memory_gb
from experiments.benchmarks.subject import batches_of, real, tiny
from lit_semantic_peft.interference import gradient_matrix, one_backward_per_fact
from lit_semantic_peft.models import fact_nll
from lit_semantic_peft.tokens import Batch

BATCH = 32
EVERY = 4  # of the facts for one backward per fact
WAYS = ("training", "in_memory", "on_disk")


def train_once(model: torch.nn.Module, batches: Sequence[Batch]) -> None:
    """One forward and backward of the facts, as training does them."""
    for batch in batches:
        fact_nll(model, batch).sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--facts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=["times", "memory", "both"], default="both")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model, 32 facts, one round")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help="folder for the JSON files; experiments/results if not set")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.facts, arguments.rounds = 32, 1
    if arguments.memory_of:
        model, batches, _ = subject(arguments)
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            ways(model, batches, folder)[arguments.memory_of]()
        print(peak_memory_gb())
        return
    about = {
        "model": "tiny" if arguments.smoke else "smollm2-135m",
        "adapter": "LoRA r=8 all-linear",
        "facts": arguments.facts,
        "micro_batch_size": BATCH,
    }
    if arguments.measure in ("times", "both"):
        print(f"Written: {keep('interference_speed', {**about, **times(arguments)}, arguments.results)}")
    if arguments.measure in ("memory", "both"):
        print(f"Written: {keep('interference_memory', {**about, **memory(arguments)}, arguments.results)}")


def subject(arguments: argparse.Namespace) -> tuple[torch.nn.Module, list[Batch], list[Batch]]:
    """The model, its facts in micro-batches, and every fourth fact by itself."""
    model, facts, pad_id = (tiny if arguments.smoke else real)(arguments.facts)
    return model, batches_of(facts, BATCH, pad_id), batches_of(facts[::EVERY], 1, pad_id)


def ways(model: torch.nn.Module, batches: Sequence[Batch], folder: str) -> dict[str, Callable[[], object]]:
    """What is compared."""
    return {
        "training": lambda: train_once(model, batches),
        "in_memory": lambda: gradient_matrix(model, batches),
        "on_disk": lambda: gradient_matrix(model, batches, features_folder=folder),
    }


def times(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each way in each round, after a warm-up on one micro-batch."""
    model, batches, few = subject(arguments)
    train_once(model, batches[:1])
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        compared = ways(model, batches, folder)
        compared["one_by_one"] = lambda: one_backward_per_fact(model, few)
        for _ in range(arguments.rounds):
            for name, way in compared.items():
                begin = time.perf_counter()
                way()
                factor = EVERY if name == "one_by_one" else 1
                seconds.setdefault(name, []).append(factor * (time.perf_counter() - begin))
                print(f"{name:<12}{seconds[name][-1]:9.2f} s", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "in_memory_to_training": median["in_memory"] / median["training"],
        "one_by_one_to_in_memory": median["one_by_one"] / median["in_memory"],
        "on_disk_to_in_memory": median["on_disk"] / median["in_memory"],
    }
    print(f"{arguments.facts} facts, micro-batches of {BATCH}, {torch.get_num_threads()} threads, ratios of medians:")
    for name, ratio in ratios.items():
        print(f"{name:<26}{ratio:6.2f}")
    return {"seconds": seconds, "ratios_of_medians": ratios}


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of each way, each in a process of its own, and how far above training's it is."""
    peak = {}
    for name in WAYS:
        command = [
            sys.executable,
            "-m",
            "experiments.benchmarks.interference_speed",
            "--memory-of",
            name,
            "--facts",
            str(arguments.facts),
        ]
        done = subprocess.run(
            [*command, *(["--smoke"] if arguments.smoke else [])], capture_output=True, text=True, check=True
        )
        peak[name] = float(done.stdout.split()[-1])
        print(f"{name:<12}{peak[name]:9.2f} GB peak, {peak[name] - peak['training']:.2f} over training", flush=True)
    return {"peak_gb": peak, "over_training_gb": {name: value - peak["training"] for name, value in peak.items()}}


if __name__ == "__main__":
    main()
