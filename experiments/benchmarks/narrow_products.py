"""Whether LoRA's A matrices of layers that read the same input should be one product: microseconds of a decoder layer.

    python -m experiments.benchmarks.narrow_products    # a minute

A decoder layer multiplies one input with the A's of q, k and v, and another with those of gate and up. The products are
timed apart and as one, forward and backward, beside the layer's products with the base weights, which stay as they
are. Processor time, one thread, in turn; the share of the saving in all of these products is an upper bound of what a
training step would gain.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from experiments.benchmarks.measured import keep
from torch import Tensor
from torch.nn.functional import linear

HIDDEN, KEY_VALUE, INNER = 576, 192, 1536
"""Widths of SmolLM2-135M."""

_ATTENTION = [(HIDDEN, HIDDEN), (KEY_VALUE, HIDDEN), (KEY_VALUE, HIDDEN), (HIDDEN, HIDDEN)]
BASE_SHAPES = [*_ATTENTION, (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
"""Outputs and inputs of a decoder layer's linear layers."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[200, 400, 800], help="of a micro-batch")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--results", type=Path, help="folder for the JSON file; experiments/results if not set")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: dict[str, Any] = {"rank": options.rank, "by_tokens": {}}
    for num_tokens in options.tokens:
        measured = measure(num_tokens, options.rank, options.repetitions)
        result["by_tokens"][num_tokens] = measured
        print(num_tokens, {name: round(value, 4) for name, value in measured.items()})
    print(f"Written: {keep('narrow_products', result, options.results)}")


def measure(num_tokens: int, rank: int, repetitions: int) -> dict[str, float]:
    """Medians for one number of tokens.

    Args:
        num_tokens: Tokens of the input.
        rank: Of LoRA.
        repetitions: How often each is timed, in turn.

    Returns:
        Microseconds of the A's `apart` and as `one`, of the `base` products and LoRA's other ones (`others`); what one
        product would save as a share of them all; and the rates of base products and of A's apart, GFLOP/s.
    """
    base = [torch.randn(shape) for shape in BASE_SHAPES]
    shared = [_factors(count, rank) for count in (3, 2)]  # q, k, v; gate, up
    inputs = {width: torch.randn(num_tokens, width, requires_grad=True) for width in (HIDDEN, INNER)}
    narrow = torch.randn(num_tokens, rank, requires_grad=True)
    wide = [torch.randn(outputs, rank, requires_grad=True) for outputs, _ in BASE_SHAPES]
    own = [torch.randn(rank, width, requires_grad=True) for width in (HIDDEN, INNER)]  # A of o and down

    def apart() -> None:
        for factors in shared:
            _backward([linear(inputs[HIDDEN], factor) for factor in factors])

    def one() -> None:
        for factors in shared:
            _backward(list(linear(inputs[HIDDEN], torch.cat(factors)).chunk(len(factors), dim=1)))

    def base_products() -> None:
        for weight in base:
            _backward([linear(inputs[weight.shape[1]], weight)])

    def others() -> None:
        _backward([linear(narrow, factor) for factor in wide])
        for factor in own:
            _backward([linear(inputs[factor.shape[1]], factor)])

    spent = _medians({"apart": apart, "one": one, "base": base_products, "others": others}, repetitions)
    saved = (spent["apart"] - spent["one"]) / (spent["apart"] + spent["base"] + spent["others"])
    base_flops = 2 * 2 * num_tokens * sum(weight.numel() for weight in base)
    narrow_flops = 3 * 2 * num_tokens * sum(factor.numel() for factors in shared for factor in factors)
    return spent | {
        "saved_share": saved,
        "base_gflops": base_flops / spent["base"] / 1e3,
        "apart_gflops": narrow_flops / spent["apart"] / 1e3,
    }


def _factors(count: int, rank: int) -> list[Tensor]:
    return [torch.randn(rank, HIDDEN, requires_grad=True) for _ in range(count)]


def _backward(outputs: list[Tensor]) -> None:
    torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])


def _medians(calls: Mapping[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(1e6 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
