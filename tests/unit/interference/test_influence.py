import itertools
import math
import warnings

import pytest
import torch
from lit_semantic_peft.interference import (
    conflict_rate,
    gradient_cosine,
    harm_done,
    is_conflict,
    net_transfer,
    undone_by,
    worst_aggressor,
)

NAN = math.nan


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_case(k, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(k, 6, generator=generator, dtype=torch.float64)
    weight = torch.rand(k, generator=generator, dtype=torch.float64) * 3
    return gradients, weight


@pytest.mark.parametrize("seed", range(5))
def test_formulas_against_plain_loops(seed):
    k, n, threshold = 7, 40, 0.2
    gradients, weight = random_case(k, seed)
    matrix = gradients @ gradients.T
    expected_transfer, expected_conflict, expected_aggressor, expected_harm = [], [], [], [0.0] * k
    for i in range(k):
        others = [j for j in range(k) if j != i]
        pull = {j: float(weight[j] * gradients[i].dot(gradients[j])) for j in range(k)}
        expected_transfer.append((n - 1) / len(others) * sum(pull[j] for j in others) / pull[i])
        cosines = [float(torch.cosine_similarity(gradients[i], gradients[j], dim=0)) for j in others]
        expected_conflict.append(sum(cosine < -threshold for cosine in cosines) / len(others))
        worst = max(others, key=lambda j: -pull[j])
        expected_aggressor.append((worst, -pull[worst]) if pull[worst] < 0 else (-1, 0.0))
        for j in others:
            expected_harm[j] += max(0.0, -pull[j])
    assert net_transfer(matrix, weight, n).tolist() == pytest.approx(expected_transfer)
    assert conflict_rate(matrix, threshold).tolist() == pytest.approx(expected_conflict)
    assert harm_done(matrix, weight).tolist() == pytest.approx(expected_harm)
    row, harm = worst_aggressor(matrix, weight)
    assert row.tolist() == [entry[0] for entry in expected_aggressor]
    assert harm.tolist() == pytest.approx([entry[1] for entry in expected_aggressor])


def test_net_transfer_predicts_the_step_of_gradient_descent():
    gradients, weight = random_case(6, 0)
    matrix = gradients @ gradients.T
    # Linear losses: the change by one step is exact. All facts sampled: n = k.
    step = (weight[:, None] * gradients).sum(dim=0)
    by_all = gradients @ step
    by_itself = weight * matrix.diagonal()
    torch.testing.assert_close(net_transfer(matrix, weight, 6), (by_all - by_itself) / by_itself)


def test_cosines_are_within_their_range_also_for_parallel_gradients():
    gradient = torch.tensor([0.1, 0.7, -0.3])
    gradients = torch.stack([gradient, 3 * gradient, -1e-3 * gradient])
    cosine = gradient_cosine(gradients @ gradients.T)
    assert cosine.abs().max() <= 1
    torch.testing.assert_close(cosine, torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]))


def test_the_scale_of_gradients_does_not_change_cosines():
    gradients, _ = random_case(5, 1)
    expected = gradient_cosine(gradients @ gradients.T).float()
    for scale in (1e-8, 1e8):
        scaled = (scale * gradients).float()
        torch.testing.assert_close(gradient_cosine(scaled @ scaled.T), expected, rtol=1e-4, atol=1e-5)


def test_a_fact_with_zero_gradient_is_undefined_and_harmless():
    matrix = torch.tensor([[4.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 4.0]])
    weight = torch.ones(3)
    torch.testing.assert_close(
        gradient_cosine(matrix), torch.tensor([[1.0, NAN, -0.5], [NAN, NAN, NAN], [-0.5, NAN, 1.0]]), equal_nan=True
    )
    torch.testing.assert_close(conflict_rate(matrix), torch.tensor([1.0, NAN, 1.0]), equal_nan=True)
    torch.testing.assert_close(net_transfer(matrix, weight, 3), torch.tensor([-0.5, NAN, -0.5]), equal_nan=True)
    assert harm_done(matrix, weight).tolist() == [2.0, 0.0, 2.0]
    row, harm = worst_aggressor(matrix, weight)
    assert row.tolist() == [2, -1, 0]
    assert harm.tolist() == [2.0, 0.0, 2.0]
    torch.testing.assert_close(undone_by(matrix, weight, harm), torch.tensor([0.5, NAN, 0.5]), equal_nan=True)


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_fact_with_an_undefined_gradient_does_not_spoil_the_others(bad):
    matrix = torch.tensor([[4.0, NAN, -2.0], [NAN, bad, NAN], [-2.0, NAN, 4.0]])
    weight = torch.ones(3)
    torch.testing.assert_close(conflict_rate(matrix), torch.tensor([1.0, NAN, 1.0]), equal_nan=True)
    # J is what is left of the sample: one other fact, standing for the two.
    transfer = net_transfer(matrix, weight, 3)
    assert transfer[[0, 2]].tolist() == [-1.0, -1.0]
    assert not torch.isfinite(transfer[1])
    torch.testing.assert_close(harm_done(matrix, weight), torch.tensor([2.0, NAN, 2.0]), equal_nan=True)
    row, harm = worst_aggressor(matrix, weight)
    assert row.tolist() == [2, -1, 0]
    torch.testing.assert_close(harm, torch.tensor([2.0, NAN, 2.0]), equal_nan=True)


def test_one_fact_has_no_others():
    matrix, weight = torch.tensor([[4.0]]), torch.ones(1)
    assert gradient_cosine(matrix).tolist() == [[1.0]]
    assert conflict_rate(matrix).isnan().all()
    assert net_transfer(matrix, weight, 1).isnan().all()
    assert harm_done(matrix, weight).tolist() == [0.0]
    assert worst_aggressor(matrix, weight)[0].tolist() == [-1]


def test_no_fact():
    matrix, weight = torch.zeros(0, 0), torch.zeros(0)
    for result in (conflict_rate(matrix), net_transfer(matrix, weight, 1), harm_done(matrix, weight)):
        assert result.shape == (0,)
    assert worst_aggressor(matrix, weight)[0].shape == (0,)


def test_identical_facts_help_each_other():
    matrix = torch.full((4, 4), 9.0)
    torch.testing.assert_close(net_transfer(matrix, torch.ones(4), 4), torch.full((4,), 3.0))
    assert conflict_rate(matrix).tolist() == [0.0] * 4
    assert harm_done(matrix, torch.ones(4)).tolist() == [0.0] * 4


def test_weight_zero_is_a_fact_that_does_nothing():
    gradients, weight = random_case(5, 3)
    weight[2] = 0
    matrix = gradients @ gradients.T
    others = torch.tensor([0, 1, 3, 4])
    assert net_transfer(matrix, weight, 9)[2].isnan()
    assert harm_done(matrix, weight)[2] == 0
    assert 2 not in worst_aggressor(matrix, weight)[0]
    # Removing it changes only the mean over the sample, 4 others instead of 3.
    without = net_transfer(matrix[others][:, others], weight[others], 9)
    torch.testing.assert_close(net_transfer(matrix, weight, 9)[others], without * 3 / 4)


def test_the_first_of_equal_aggressors_is_named():
    matrix = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    assert worst_aggressor(matrix, torch.ones(3))[0].tolist() == [1, 0, 0]


def test_the_diagonal_is_no_conflict_and_the_threshold_counts():
    cosine = torch.tensor([[-1.0, -0.05], [-0.06, 1.0]])
    assert is_conflict(cosine, 0.055).tolist() == [[False, False], [True, False]]


def test_shapes_are_checked():
    for function in (gradient_cosine, conflict_rate):
        with pytest.raises(ValueError, match=r"\(k, k\)"):
            function(torch.zeros(2, 3))
    for function, arguments in itertools.product([harm_done, worst_aggressor], [(torch.eye(2), torch.ones(3))]):
        with pytest.raises(ValueError, match="loss_weight"):
            function(*arguments)
    with pytest.raises(ValueError, match="num_trained_facts"):
        net_transfer(torch.eye(2), torch.ones(2), 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "gradients",
    {
        "not a number": [[1.0, 2.0], [NAN, 0.0], [3.0, -1.0]],
        "infinite": [[1.0, 2.0], [math.inf, 0.0], [3.0, -1.0]],
        "zero": [[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]],
        "all zero": [[0.0, 0.0], [0.0, 0.0]],
        "one fact": [[1.0, 2.0]],
        "two identical": [[1.0, 2.0], [1.0, 2.0]],
        "none": [],
    }.items(),
    ids=lambda item: item[0],
)
def test_degenerate_facts_give_defined_results_without_a_warning(gradients):
    rows = torch.tensor(gradients[1]).reshape(-1, 2)
    matrix, weight = rows @ rows.T, torch.ones(len(rows))
    is_bad = ~matrix.diagonal().isfinite()
    matrix[is_bad], matrix[:, is_bad] = NAN, NAN  # as `gradient_matrix` gives it
    has_gradient = ~is_bad & (matrix.diagonal() > 0)
    num_others = has_gradient.sum() - has_gradient.long()
    cosine = gradient_cosine(matrix)
    assert torch.equal(cosine.isfinite(), has_gradient[:, None] & has_gradient[None, :])
    assert torch.equal(conflict_rate(matrix).isfinite(), has_gradient & (num_others > 0))
    assert torch.equal(harm_done(matrix, weight).isfinite(), ~is_bad)
    assert torch.equal(worst_aggressor(matrix, weight)[1].isfinite(), ~is_bad)
    finite = net_transfer(matrix, weight, max(len(rows), 1)).isfinite()
    assert torch.equal(finite, has_gradient & ((~is_bad).sum() > 1))
    if gradients[0] == "two identical":
        torch.testing.assert_close(cosine, torch.ones(2, 2))
        assert net_transfer(matrix, weight, 2).tolist() == [1.0, 1.0]
