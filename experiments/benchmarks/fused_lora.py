"""What LoRA's fused layers save of a training step, and how far their gradients are from PEFT's.

    python -m experiments.benchmarks.fused_lora [--repetitions 8] [--padded]

Processor time of forward and backward pass on one thread, fused and by PEFT's own forward in turn in one process, on
the same micro-batches of facts of `world`, as prefix trees or padded.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from experiments.benchmarks.measured import keep, rotated, spread
from experiments.benchmarks.subject import batches_of, real, tiny
from lit_semantic_peft.models import fact_nll
from lit_semantic_peft.models.fused_lora import fuse_lora, separate_lora
from lit_semantic_peft.tokens import Batch, prefix_tree
from peft import PeftModel
from torch import Tensor

WAYS = {"peft": separate_lora, "fused": fuse_lora}


def measure(model: PeftModel, batches: Sequence[Batch], repetitions: int, *, has_trees: bool) -> dict[str, Any]:
    """Times both ways: in a repetition each twice on one micro-batch, in the order A B B A, so that a drift cancels.

    Args:
        model: With LoRA, in float32.
        batches: Micro-batches; a repetition takes one.
        repetitions: How many are counted, after one that warms up.
        has_trees: Whether prefix trees run, or padded batches.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    differences = []
    for repetition in range(-1, repetitions):
        batch, gradients, spent = batches[repetition % len(batches)], {}, dict.fromkeys(WAYS, 0.0)
        first = rotated(list(WAYS), repetition)
        for way in [*first, *reversed(first)]:
            WAYS[way](model)
            needed, gradients[way] = _step(model, batch, has_tree=has_trees)
            spent[way] += needed
        differences.append(float((gradients["fused"] - gradients["peft"]).norm() / gradients["peft"].norm()))
        if repetition >= 0:
            print(
                f"{repetition + 1}/{repetitions}:", {way: round(needed, 2) for way, needed in spent.items()}, flush=True
            )
            for way, needed in spent.items():
                seconds[way].append(needed)
    separate_lora(model)
    quotients = [peft / fused for peft, fused in zip(seconds["peft"], seconds["fused"], strict=True)]
    return {"processor_seconds": seconds, "faster_by": spread(quotients), "largest_difference": max(differences)}


def _step(model: PeftModel, batch: Batch, *, has_tree: bool) -> tuple[float, Tensor]:
    """Processor seconds, and the gradient of all trained parameters."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    begun = time.process_time()
    loss = fact_nll(model, batch, tree=prefix_tree(batch) if has_tree else None).mean()
    gradients = torch.autograd.grad(loss, parameters)
    return time.process_time() - begun, torch.cat([one.flatten() for one in gradients])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes `fused_lora.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_facts", type=int, default=64)
    parser.add_argument("--micro_batch_size", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--padded", action="store_true", help="padded batches in place of prefix trees")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, to see whether it runs")
    parser.add_argument("--output", type=Path, help="folder of the result; experiments/results where left out")
    options = vars(parser.parse_args(arguments))
    output, is_tiny = options.pop("output"), options.pop("tiny")
    if not is_tiny:
        torch.set_num_threads(1)
    model, facts, pad_id = (tiny if is_tiny else real)(options["num_facts"])
    batches = batches_of(facts, options["micro_batch_size"], pad_id)
    result = measure(model, batches, options["repetitions"], has_trees=not options["padded"])
    ratio = result["faster_by"]
    said = f"faster by {ratio['median']:.3f} × ({ratio['min']:.3f}–{ratio['max']:.3f})"
    print(f"{said}; gradients differ by {result['largest_difference']:.1e} of their norm")
    print(keep("fused_lora", {"settings": options, **result}, output))


if __name__ == "__main__":
    main()
