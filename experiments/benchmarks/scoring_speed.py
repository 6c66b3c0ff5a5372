"""How fast scoring is: ours, a plain loop over transformers, and the bare forward pass over the same tokens.

    python -m experiments.benchmarks.scoring_speed [--dtype bfloat16] [--repetitions 5]

- `ours`: `score_targets`, one pass that gives the expected-embedding distance, the surprisal and teacher-forced recall.
- `ours, trees`: the same from a prefix tree of each batch, its building included.
- `plain loop`: batches in file order, full logits, the same three numbers, as one would write it in an afternoon.
- `bare forward`: the backbone alone over the batches of ours, and the vocabulary projection of the target positions.

Greedy answers, which `setup` asks for as well, are a matter of generation and are not part of it. Also timed:
`setup` of a data module whose scores are in the cache.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from experiments.benchmarks.measured import keep, rotated, spread
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.evaluation import EvaluationPlan
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.models.objective import predicting_mask
from lit_semantic_peft.semantics import ExpectedEmbeddingDistance, Surprisal, score_targets
from lit_semantic_peft.tokens import Batch, cheaper_tree, collate
from rich.console import Console
from rich.table import Table

Scores = dict[int, tuple[float, float, bool]]
"""Distance, surprisal in nats per token, and whether it is recalled, by fact index."""


def ours(model: Any, batches: Sequence[Batch], *, has_trees: bool = False) -> Scores:
    """The package's scoring."""
    scores: Scores = {}
    for batch in batches:
        tree = cheaper_tree(batch) if has_trees else None
        found = score_targets(model, batch, [ExpectedEmbeddingDistance(), Surprisal()], tree=tree)
        distance, nll = found.distances["ExpectedEmbeddingDistance"].tolist(), found.nll.tolist()
        for row, fact in enumerate(batch.fact_index.tolist()):
            scores[fact] = (distance[row], nll[row], bool(found.is_recalled[row]))
    return scores


@torch.no_grad()
def plain_loop(model: Any, batches: Sequence[Batch]) -> Scores:
    """The same numbers with full logits and a loop over the facts."""
    embedding = model.get_input_embeddings().weight.float()
    scores: Scores = {}
    for batch in batches:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for row, fact in enumerate(batch.fact_index.tolist()):
            places = (batch.labels[row] != -100).nonzero().flatten()
            targets = batch.labels[row, places]
            log_probs = logits[row, places - 1].float().log_softmax(dim=-1)
            expected = log_probs.exp() @ embedding
            distance = 1 - F.cosine_similarity(expected, embedding[targets])
            nll = -log_probs.gather(1, targets[:, None])
            scores[fact] = (
                float(distance.mean()),
                float(nll.mean()),
                bool((log_probs.argmax(dim=-1) == targets).all()),
            )
    return scores


@torch.no_grad()
def bare_forward(model: Any, batches: Sequence[Batch]) -> None:
    """What no scoring can do without."""
    for batch in batches:
        hidden = model.model(
            input_ids=batch.input_ids[:, :-1], attention_mask=batch.attention_mask[:, :-1], use_cache=False
        ).last_hidden_state
        model.get_output_embeddings()(hidden[predicting_mask(batch.labels)])


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Times the ways in turn, and `setup` with cached scores.

    Raises:
        SystemExit: If ours, by trees or padded, and the plain loop do not give the same numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        make = _data_module(options, folder)
        data = make()
        data.setup("fit")
        seconds_setup = []
        for _ in range(options["repetitions"]):
            again = make()
            seconds_setup.append(_seconds(partial(again.setup, "fit")))
    encoded = data.prepared.encoded
    device = data.device
    model = BaseModel(options["base_model"], dtype=options["dtype"]).load().to(device)
    size = options["batch_size"]
    by_length = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]))

    def batches(order: Sequence[int]) -> list[Batch]:
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        return [
            collate([encoded[row] for row in part], part, data.encoder.pad_id, with_end=False).to(device)
            for part in parts
        ]

    sorted_batches, plain_batches = batches(by_length), batches(range(len(encoded)))
    expected = plain_loop(model, plain_batches)
    disagreement = max(_disagreement(ours(model, sorted_batches, has_trees=way), expected) for way in (False, True))
    if disagreement > (0.05 if options["dtype"] != "float32" else 1e-3):
        raise SystemExit(f"ours and the plain loop differ by up to {disagreement}")
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(model, sorted_batches),
        "ours, trees": lambda: ours(model, sorted_batches, has_trees=True),
        "plain loop": lambda: plain_loop(model, plain_batches),
        "bare forward": lambda: bare_forward(model, sorted_batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(options["repetitions"]):
        for name in rotated(list(runs), repetition):
            seconds[name].append(_seconds(runs[name]))
    return {
        "settings": options | {"facts": Path(options["facts"]).name},
        "facts_per_s": {name: [len(encoded) / one for one in values] for name, values in seconds.items()},
        "ratios": {
            f"ours / {other}": spread([b / a for a, b in zip(seconds["ours"], seconds[other], strict=True)])
            for other in ("ours, trees", "bare forward", "plain loop")
        },
        "largest_disagreement": disagreement,
        "cached_setup_seconds": seconds_setup,
    }


def _data_module(options: dict[str, Any], folder: str) -> Callable[[], KnowledgeDataModule]:
    return lambda: KnowledgeDataModule(
        facts=options["facts"],
        num_facts=options["num_facts"],
        base_model=options["base_model"],
        evaluation=EvaluationPlan(probes=[], retention=False),
        cache_dir=folder,
    )


def _disagreement(left: Scores, right: Scores) -> float:
    """Largest difference of a distance or, relative, of a surprisal."""
    assert left.keys() == right.keys()
    return max(
        max(abs(left[fact][0] - right[fact][0]), abs(left[fact][1] - right[fact][1]) / (1 + right[fact][1]))
        for fact in left
    )


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    table = Table("scoring", "facts/s (median)", "min–max")
    for name, values in result["facts_per_s"].items():
        table.add_row(name, f"{statistics.median(values):.1f}", f"{min(values):.1f}–{max(values):.1f}")
    console = Console()
    console.print(table)
    for name, one in result["ratios"].items():
        console.print(f"{name}: {one['median']:.2f} ({one['min']:.2f}–{one['max']:.2f})")
    console.print(f"setup with cached scores: {statistics.median(result['cached_setup_seconds']):.2f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes `experiments/results/scoring_speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", default="counterfactual")
    parser.add_argument("--num_facts", type=int, default=256)
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder of the result; experiments/results where left out")
    options = vars(parser.parse_args(arguments))
    output = options.pop("output")
    result = measure(options)
    show(result)
    print(keep("scoring_speed", result, output))


if __name__ == "__main__":
    main()
