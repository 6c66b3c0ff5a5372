import math
import warnings

import pytest
import torch
from lit_semantic_peft.interference import conflict_rate, harm_done, net_transfer
from lit_semantic_peft.metrics import GradientInterference


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def gram(k, seed=0):
    gradients = torch.randn(k, 5, generator=torch.Generator().manual_seed(seed))
    return gradients @ gradients.T


def test_it_says_what_the_pure_functions_say():
    matrix, weight = gram(6), torch.rand(6, generator=torch.Generator().manual_seed(1))
    metric = GradientInterference(torch.arange(6) * 10, weight, num_trained_facts=50, threshold=0.1)
    metric.update(matrix)
    result = metric.compute()
    torch.testing.assert_close(result["net_transfer"], net_transfer(matrix, weight, 50))
    torch.testing.assert_close(result["conflict_rate"], conflict_rate(matrix, 0.1))
    torch.testing.assert_close(result["harm_done"], harm_done(matrix, weight))
    for i, aggressor in enumerate(result["worst_aggressor"].tolist()):
        pull = weight * matrix[i]
        pull[i] = math.inf
        assert aggressor == (10 * int(pull.argmin()) if pull.min() < 0 else -1)
        undone = -min(float(pull.min()), 0.0) / float(weight[i] * matrix[i, i])
        assert float(result["undone_by_worst"][i]) == pytest.approx(undone)
    summary = metric.summary()
    assert summary["conflict_rate"] == pytest.approx(result["conflict_rate"].mean().item())
    assert summary["net_transfer_median"] == pytest.approx(result["net_transfer"].quantile(0.5).item())
    for name, bound in (("share_net_transfer_below_0", 0), ("share_net_transfer_below_minus_1", -1)):
        assert summary[name] == pytest.approx((result["net_transfer"] < bound).float().mean().item())
    assert all(isinstance(value, float) for value in summary.values())


def test_updates_are_averaged_before_anything_is_computed():
    first, second = gram(4, 0), gram(4, 1)
    both, mean = (GradientInterference(range(4), [1.0] * 4, 4) for _ in range(2))
    both.update(first)
    both.update(second)
    mean.update((first + second) / 2)
    for name, value in mean.compute().items():
        torch.testing.assert_close(both.compute()[name], value)


def test_rows_of_two_ranks_are_the_whole_matrix():
    matrix = gram(5)
    whole, left, right = (GradientInterference(range(5), [1.0] * 5, 5) for _ in range(3))
    whole.update(matrix)
    left.update(matrix[[0, 3]], rows=torch.tensor([0, 3]))
    right.update(matrix[[1, 2, 4]], rows=torch.tensor([1, 2, 4]))
    left.merge_state(right)
    for name, value in whole.compute().items():
        torch.testing.assert_close(left.compute()[name], value)


@pytest.mark.filterwarnings("error")
def test_all_facts_of_one_relation_are_one_group():
    matrix = torch.tensor([[4.0, -2.0, 1.0], [-2.0, 4.0, 0.0], [1.0, 0.0, 4.0]])
    metric = GradientInterference([0, 1, 2], [1.0, 1.0, 1.0], 3)
    metric.update(matrix)
    grouped = metric.by_group(["capital"] * 3)
    assert list(grouped) == ["capital"]
    assert grouped["capital"]["num_facts"] == 3
    assert grouped["capital"]["conflict_rate_within"] == pytest.approx(metric.summary()["conflict_rate"])
    assert math.isnan(grouped["capital"]["conflict_rate_across"])
    assert grouped["capital"]["share_of_harm_done"] == 1.0


def test_undefined_facts_are_counted_and_left_out():
    matrix = torch.tensor([[4.0, math.nan, -2.0], [math.nan] * 3, [-2.0, math.nan, 4.0]])
    metric = GradientInterference([0, 1, 2], [1.0, 1.0, 1.0], 3)
    metric.update(matrix)
    summary = metric.summary()
    assert summary["conflict_rate"] == 1.0
    assert summary["gradient_cosine_mean"] == -0.5
    assert summary["net_transfer_median"] == -1.0
    assert summary["num_undefined_facts"] == 1
    one = GradientInterference([0], [1.0], 1)
    one.update(torch.ones(1, 1))
    assert math.isnan(one.summary()["conflict_rate"])
    assert math.isnan(one.summary()["harm_done_top_tenth"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([0, 0], [1.0, 1.0], 2), "fact_index"),
        (([], [], 2), "fact_index"),
        (([0, 1], [1.0], 2), "loss_weight"),
        (([0, 1], [1.0, -1.0], 2), "loss_weight"),
        (([0], [1.0], 0), "num_trained_facts"),
        (([0], [1.0], 1, -0.1), "threshold"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        GradientInterference(*arguments)


def test_a_matrix_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        GradientInterference(range(3), [1.0] * 3, 3).update(torch.eye(2))
