"""Operations are counted as matrix products have them, and a peak is a speed."""

import torch
from experiments.benchmarks import roofline


def test_products_and_attention_are_counted_forward_and_backward():
    tokens, width, heads = 6, 8, 2
    weight = torch.randn(width, width)
    inputs = torch.randn(tokens, width, requires_grad=True)
    product = 2 * tokens * width * width
    with roofline.counter() as counted:
        (inputs @ weight).sum().backward()
    assert counted.get_total_flops() == 2 * product  # the weight needs no gradient
    query = torch.randn(1, heads, tokens, width // heads, requires_grad=True)
    mask = torch.zeros(1, 1, tokens, tokens)
    with roofline.counter() as counted:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask).sum().backward()
    one = 2 * tokens * tokens * width  # scores, or their product with the values, over all heads
    assert counted.get_total_flops() == (2 + 5) * one


def test_the_peak_is_the_best_of_its_repetitions(monkeypatch):
    monkeypatch.setattr(roofline, "SIZE", 32)
    seconds = iter([9.0, 2.0, 0.5, 4.0])  # the first warms up
    monkeypatch.setattr(roofline, "_seconds", lambda *_: next(seconds))
    assert roofline.peak_gflops(torch.float32) == 2 * 32**3 / 0.5 / 1e9
