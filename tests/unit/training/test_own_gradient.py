"""Sums over ranks leave each rank's own part as it is."""

from types import SimpleNamespace

import torch
from lit_semantic_peft.training.own_gradient import sum_over_ranks


def test_a_sum_over_ranks_leaves_what_it_is_given():
    """Lightning's `reduce` adds the other ranks' parts to its argument; a step sums its terms twice."""
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value.mul_(2))  # two ranks with equal parts
    terms = torch.tensor([3.0, 4.0])
    assert sum_over_ranks(SimpleNamespace(strategy=strategy), terms).tolist() == [6.0, 8.0]
    assert terms.tolist() == [3.0, 4.0]
