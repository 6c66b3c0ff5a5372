import math

import pytest
import torch
import torch.nn.functional as F
from lit_semantic_peft.metrics.functional import (
    interference_summary,
    is_pushed_away,
    kl_from_likeliest,
    likeliest_tokens,
    mean_over_facts,
    per_fact_mean,
    share,
    target_probability,
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


def full_kl(p, q):
    p, q = F.log_softmax(p.double(), -1), F.log_softmax(q.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def test_kl_from_the_likeliest_tokens_is_a_lower_bound_that_reaches_the_divergence():
    generator = torch.Generator().manual_seed(2)
    p, q = (4 * torch.randn(20, 300, generator=generator) for _ in range(2))
    previous = torch.zeros(20, dtype=torch.float64)
    for kept in (1, 8, 64, 299):
        bound = kl_from_likeliest(*likeliest_tokens(p, kept), q)
        assert (bound >= previous - 1e-4).all(), "more tokens, nearer"
        assert (bound <= full_kl(p, q) + 1e-4).all()
        previous = bound
    torch.testing.assert_close(previous, full_kl(p, q), atol=1e-3, rtol=1e-4)
    assert (kl_from_likeliest(*likeliest_tokens(p, 8), p) == 0).all()


def test_the_probability_of_a_target_is_the_product_over_its_tokens():
    per_token = torch.tensor([0.5, 0.25, 0.8])
    nll = -per_token.log().mean()
    assert target_probability(nll[None], torch.tensor([3])).item() == pytest.approx(0.1)
