"""Many facts: memory of the random projection, and its error against the exact gradient matrix.

    python -m experiments.benchmarks.interference_sketch            # SmolLM2-135M: error of 256 facts, memory of 10,000
    python -m experiments.benchmarks.interference_sketch --smoke    # a tiny random model, to see whether it runs

The error is of real facts. Memory is measured on made-up facts of four tokens: it depends on the number of facts and
the size of the adapter, not on their content, and short ones make 10,000 of them through the real model affordable.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from experiments.benchmarks.measured import keep, peak_memory_gb
from experiments.benchmarks.subject import batches_of, real, tiny
from lit_semantic_peft.interference import gradient_matrix, gradient_sketch, sketch_error, sketch_influence
from lit_semantic_peft.interference.influence import conflict_rate, net_transfer
from lit_semantic_peft.tokens import EncodedFact

BATCH = 64
MANY = 100_000


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--facts", type=int, default=10_000, help="largest number for the memory")
    parser.add_argument("--error-facts", type=int, default=256)
    parser.add_argument("--smoke", action="store_true", help="a tiny random model and few facts")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help="folder for the JSON file; experiments/results if not set")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.facts, arguments.error_facts = 128, 32
    if arguments.memory_of:
        print(*memory_of(arguments.memory_of, arguments.smoke))
        return
    result = {
        "model": "tiny" if arguments.smoke else "smollm2-135m",
        "adapter": "LoRA r=8 all-linear",
        "error": error(arguments),
        "memory": memory(arguments),
    }
    print(f"Written: {keep('interference_sketch', result, arguments.results)}")


def error(arguments: argparse.Namespace) -> dict[str, Any]:
    """Error of cosines, and of what is concluded from them, by dimension."""
    model, facts, pad_id = (tiny if arguments.smoke else real)(arguments.error_facts)
    batches = batches_of(facts, 32, pad_id)
    found: dict[str, Any] = {"facts": len(facts)}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        exact = gradient_matrix(model, batches, features_folder=folder)
        weight = torch.ones(len(facts))
        for dimension in (1024, 4096, 16384):
            begin = time.perf_counter()
            sketch = gradient_sketch(model, batches, Path(folder) / "sketch.npy", dimension)
            seconds = time.perf_counter() - begin
            influence = sketch_influence(sketch, weight, len(facts))
            transfers = torch.stack([net_transfer(exact, weight, len(facts)), influence["net_transfer"]])
            found[str(dimension)] = {
                **sketch_error(sketch.gradient_dot(), exact),
                "expected": dimension**-0.5,
                "conflict_rate": float(influence["conflict_rate"].mean()),
                "net_transfer_correlation": float(torch.corrcoef(transfers)[0, 1]),
                "seconds": seconds,
            }
            print(dimension, found[str(dimension)], flush=True)
    found["exact_conflict_rate"] = float(conflict_rate(exact).mean())
    return found


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory by number of facts, and the straight line through the last two, continued to 100,000 facts."""
    peaks = {}
    for number in (arguments.facts // 2, arguments.facts):
        command = [
            sys.executable,
            "-m",
            "experiments.benchmarks.interference_sketch",
            "--memory-of",
            str(number),
            *(["--smoke"] if arguments.smoke else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, making, using = (float(one) for one in done.stdout.split()[-3:])
        peaks[number] = {"peak_gb": peak, "seconds_sketch": making, "seconds_influence": using}
        print(f"{number} facts: {peak:.2f} GB peak, {making:.0f} s for the sketch, {using:.1f} s for the influence")
    (few, low), (many, high) = ((number, one["peak_gb"]) for number, one in peaks.items())
    extrapolated = high + max(high - low, 0) / (many - few) * (MANY - many)
    print(f"{MANY} facts, extrapolated: {extrapolated:.2f} GB")
    return {"by_facts": peaks, f"extrapolated_to_{MANY}_gb": extrapolated, "tokens_per_fact": 4}


def memory_of(num_facts: int, is_smoke: bool) -> tuple[float, float, float]:
    """Peak GB of sketch and influence together, and seconds of each."""
    model, _, pad_id = (tiny if is_smoke else real)(1)
    torch.manual_seed(0)
    ids = torch.randint(1, 64, (num_facts, 4)).tolist()
    batches = batches_of([EncodedFact(tuple(row[:3]), tuple(row[3:])) for row in ids], BATCH, pad_id)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        begin = time.perf_counter()
        sketch = gradient_sketch(model, batches, Path(folder) / "sketch.npy")
        made = time.perf_counter()
        sketch_influence(sketch, torch.ones(num_facts), num_facts)
        return peak_memory_gb(), made - begin, time.perf_counter() - made


if __name__ == "__main__":
    main()
