"""How filtering, batch planning and building prefix trees grow with the number of facts: seconds, memory, exponent.

    python -m experiments.benchmarks.scale [--sizes 1000 10000 100000 1000000]

The facts' distances and tokens are given (random), so that no model runs. Each size and stage has a process of its own:
its peak memory is its own. A stage's exponent is the slope of log(seconds) over log(facts) between the two largest
sizes; that of n log n is 1.08 between 10⁵ and 10⁶.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.benchmarks.measured import keep, peak_memory_gb
from lit_semantic_peft.data import StepPlan
from lit_semantic_peft.semantics import (
    BandFilter,
    FactFilter,
    KnownFilter,
    MeanVarianceFilter,
    Proximity,
    RandomFilter,
    ScoredFacts,
    apply_filters,
    loss_weights,
)
from lit_semantic_peft.tokens import EncodedFact, collate, prefix_tree
from rich.console import Console
from rich.table import Table

CHAIN: list[FactFilter] = [
    KnownFilter(),
    BandFilter(min_quantile=0.02, max_quantile=0.98),
    MeanVarianceFilter(keep=0.75),
    RandomFilter(keep=0.9),
]


def table_of(num_facts: int) -> ScoredFacts:
    """Facts with random distances, in 50 relations."""
    random = np.random.default_rng(0)
    distance = random.uniform(0, 2, num_facts)
    return ScoredFacts(
        fact_id=tuple(f"fact-{number}" for number in range(num_facts)),
        relation=tuple(f"relation {number % 50}" for number in range(num_facts)),
        distance=distance,
        base_nll=random.uniform(0, 15, num_facts),
        is_known=random.random(num_facts) < 0.1,
        base_answer=("",) * num_facts,
        distances={"ExpectedEmbeddingDistance": distance},
    )


def filter_facts(facts: ScoredFacts) -> None:
    """The chain of filters, and the weights of what is left."""
    selection = apply_filters(CHAIN, facts)
    loss_weights(Proximity(), facts.distance[selection.kept], is_rank_based=False)


def plan_batches(facts: ScoredFacts) -> None:
    """One epoch's micro-batches of one of two ranks."""
    lengths = np.random.default_rng(1).integers(6, 30, len(facts)).tolist()
    plan = StepPlan(range(len(facts)), lengths, micro_batch_size=16, accumulate_grad_batches=4, world_size=2)
    assert sum(len(micro_batch.rows) for micro_batch in plan) >= len(facts) // 2


def build_trees(facts: ScoredFacts) -> None:
    """The trees of an epoch's micro-batches of 16 facts of 13 tokens; facts of a relation share the first five."""
    random = np.random.default_rng(2)
    names = random.integers(100, 30_000, (len(facts), 8)).tolist()
    ids = random.permutation(len(facts)).tolist()
    for start in range(0, len(ids), 16):
        rows = ids[start : start + 16]
        encoded = [
            EncodedFact((*range(row % 50, row % 50 + 5), *names[row][:5]), tuple(names[row][5:])) for row in rows
        ]
        prefix_tree(collate(encoded, rows, pad_id=0))


STAGES: dict[str, Callable[[ScoredFacts], None]] = {"filter": filter_facts, "plan": plan_batches, "trees": build_trees}


def timed(stage: str, num_facts: int) -> tuple[float, float]:
    """Seconds of a stage, and the most memory that this process has had, GB."""
    facts = table_of(num_facts)
    started = time.perf_counter()
    STAGES[stage](facts)
    return time.perf_counter() - started, peak_memory_gb()


def timed_apart(stage: str, num_facts: int) -> tuple[float, float]:
    """The same in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(timed, (stage, num_facts))


def measure(sizes: Sequence[int], run: Callable[[str, int], tuple[float, float]] = timed_apart) -> dict[str, Any]:
    """Seconds and peak memory of each stage and size, and each stage's exponent."""
    rows = []
    for stage in STAGES:
        for size in sizes:
            seconds, peak = run(stage, size)
            rows.append({"stage": stage, "num_facts": size, "seconds": seconds, "peak_memory_gb": peak})
    return {"rows": rows, "exponent": {stage: exponent(rows, stage) for stage in STAGES}}


def exponent(rows: Sequence[dict[str, Any]], stage: str) -> float | None:
    """Slope of log(seconds) over log(facts) between the two largest sizes; None with one size."""
    mine = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["num_facts"])[-2:]
    if len(mine) < 2:
        return None
    small, large = mine
    return math.log(large["seconds"] / small["seconds"]) / math.log(large["num_facts"] / small["num_facts"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes `experiments/results/scale.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path, help="folder of the result; experiments/results where left out")
    options = parser.parse_args(arguments)
    result = measure(options.sizes)
    table = Table("stage", "facts", "seconds", "peak GB")
    for row in result["rows"]:
        table.add_row(row["stage"], f"{row['num_facts']:,}", f"{row['seconds']:.3f}", f"{row['peak_memory_gb']:.2f}")
    Console().print(table)
    for stage, value in result["exponent"].items():
        print(f"{stage}: seconds grow as facts^{value:.2f}" if value is not None else f"{stage}: one size only")
    print(keep("scale", result, options.output))


if __name__ == "__main__":
    main()
