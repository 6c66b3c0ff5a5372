import math

import pytest
import torch
from lit_semantic_peft.metrics.functional import (
    interference_summary,
    is_pushed_away,
    mean_over_facts,
    per_fact_mean,
    share,
)


def test_nothing_measured_is_nan():
    zero = torch.zeros(3), torch.zeros(3, dtype=torch.long)
    assert per_fact_mean(*zero).isnan().all()
    assert mean_over_facts(*zero).isnan()
    assert share(torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)).isnan()


def test_the_mean_over_facts_weighs_facts_and_not_measurements():
    assert mean_over_facts(torch.tensor([9.0, 1.0]), torch.tensor([9, 1])) == 1.0
    assert mean_over_facts(torch.tensor([0.0, 1.0]), torch.tensor([9, 1])) == 0.5


def test_the_bound_itself_is_not_pushed_away():
    assert is_pushed_away(torch.tensor([0.0, 1e-6, -1.0])).tolist() == [False, True, False]


def test_summary_counts_each_pair_once():
    cosine = torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, math.nan], [0.2, math.nan, math.nan]])
    summary = interference_summary(cosine, torch.tensor([-2.0, -0.5, math.nan]), torch.tensor([3.0, 1.0, math.nan]))
    assert {name: value.item() for name, value in summary.items()} == pytest.approx(
        {
            "conflict_rate": 0.5,
            "gradient_cosine_mean": -0.15,
            "net_transfer_median": -1.25,
            "share_net_transfer_below_0": 1.0,
            "share_net_transfer_below_minus_1": 0.5,
            "harm_done_top_tenth": 0.75,
            "num_undefined_facts": 1.0,
        }
    )
