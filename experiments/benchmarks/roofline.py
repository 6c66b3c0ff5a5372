"""What matrix products a training asks for, and how fast this machine does them at best."""

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

SIZE = 2048
"""Rows and columns of the matrices whose product gives the peak: 16 MB each in float32."""


def counter() -> FlopCounterMode:
    """Counts, within its block, the floating point operations of matrix products and of attention.

    `get_total_flops()` is their number afterwards, a product and a sum counted as two; attention counts in full,
    masked or not. An operation that is run again, for recomputed activations, counts again.
    """
    aten = torch.ops.aten
    of_cpu = {  # torch 2.13 has a formula for each kernel of attention but this one
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=of_cpu)


def peak_gflops(dtype: torch.dtype, repetitions: int = 3) -> float:
    """GFLOP/s of a large square product on this machine's device, with the threads that torch has: the best of some.

    Args:
        dtype: Of the matrices.
        repetitions: How often it is timed, after once to warm up.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
    seconds = [_seconds(left, right) for _ in range(repetitions + 1)][1:]
    return 2 * SIZE**3 / min(seconds) / 1e9


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    begun = time.perf_counter()
    left @ right
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
    return count
