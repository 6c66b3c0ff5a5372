"""The optimal weights, against scipy's linear programme and its general solver, and against a grid."""

import itertools

import numpy as np
import pytest
from lit_semantic_peft.training.interference_aware.progress_weights import predicted_progress, progress_weights
from scipy.optimize import linprog, minimize


def random_matrix(rng, num_facts, dimension=4):
    gradients = rng.normal(size=(num_facts, dimension)) * rng.lognormal(0, 0.7, size=(num_facts, 1))
    return gradients @ gradients.T


def value(matrix, old, new, objective, beta):
    progress = predicted_progress(matrix, new)
    share, before = new / new.sum(), old / old.sum()
    kl = sum(p * np.log(p / q) for p, q in zip(share, before, strict=True) if p > 0)
    return (progress.min() if objective == "worst" else progress.mean()) - beta * kl


def linear_programme(matrix, old, floor, cap):
    """max t with (M v)_i ≥ t."""
    scaled = matrix / matrix.diagonal().mean()
    count = len(old)
    solution = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.hstack([-scaled, np.ones((count, 1))]),
        b_ub=np.zeros(count),
        A_eq=[np.append(np.ones(count), 0.0)],
        b_eq=[old.sum()],
        bounds=[*((floor * one, cap * one) for one in old), (None, None)],
    )
    assert solution.success
    return -solution.fun


def general_solver(matrix, old, objective, beta, floor, cap):
    """Sequential quadratic programming over v and t, from several starts."""
    scaled = matrix / matrix.diagonal().mean()
    count, total = len(old), old.sum()

    def loss(x):
        share = np.maximum(x[:count], 1e-12) / total
        gain = x[count] if objective == "worst" else (scaled @ x[:count]).mean()
        return -gain + beta * (share * np.log(share * total / old)).sum()

    constraints = [{"type": "eq", "fun": lambda x: x[:count].sum() - total}]
    if objective == "worst":
        constraints.append({"type": "ineq", "fun": lambda x: scaled @ x[:count] - x[count]})
    start = np.append(old, (scaled @ old).min())
    bounds = [*((floor * one, cap * one) for one in old), (None, None)]
    options = {"maxiter": 1000, "ftol": 1e-9}
    found = minimize(loss, start, bounds=bounds, constraints=constraints, method="SLSQP", options=options)
    assert found.success, found.message
    return -found.fun


def require_allowed(old, new, floor, cap):
    assert new.sum() == pytest.approx(old.sum(), rel=1e-9)
    assert (new >= floor * old - 1e-9).all()
    assert (new <= cap * old + 1e-9).all()


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("objective", ["worst", "mean"])
def test_equals_the_general_solver(objective, beta):
    rng = np.random.default_rng(0)
    for number in range(25):
        matrix = random_matrix(rng, 2 + number % 9)
        old = np.ones(len(matrix)) if number % 2 else rng.lognormal(0, 1, len(matrix))
        floor, cap = [(0.25, 4.0), (0.0, 100.0), (0.5, 1.5)][number % 3]
        new = progress_weights(matrix, old, objective=objective, beta=beta, floor=floor, cap=cap)
        require_allowed(old, new, floor, cap)
        expected = general_solver(matrix, old, objective, beta, floor, cap)
        assert value(matrix, old, new, objective, beta) == pytest.approx(expected, abs=3e-4)


def test_without_penalty_it_equals_the_linear_programme():
    rng = np.random.default_rng(1)
    for number in range(13):
        matrix = random_matrix(rng, 2 + number if number < 12 else 64)
        old = rng.lognormal(0, 0.5, len(matrix))
        new = progress_weights(matrix, old, beta=0.0, floor=0.2, cap=5.0)
        require_allowed(old, new, 0.2, 5.0)
        best = linear_programme(matrix, old, 0.2, 5.0)
        assert value(matrix, old, new, "worst", 0.0) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("objective", ["worst", "mean"])
def test_a_small_penalty_hardly_matters(objective):
    """Shares of e^-1000 and less before they are cut to the bounds."""
    rng = np.random.default_rng(3)
    diagonal = np.diag([2.0, 1.0, 0.6, 0.4])
    cases = [(diagonal, 0.25, 1.5), (random_matrix(rng, 64), 0.25, 4.0), (random_matrix(rng, 64), 0.0, 1.1)]
    for (matrix, floor, cap), beta in itertools.product(cases, [1e-2, 1e-3, 1e-5]):
        old = rng.lognormal(0, 0.3, len(matrix))
        new = progress_weights(matrix, old, objective=objective, beta=beta, floor=floor, cap=cap)
        require_allowed(old, new, floor, cap)
        without = progress_weights(matrix, old, objective=objective, beta=0.0, floor=floor, cap=cap)
        assert value(matrix, old, new, objective, beta) >= value(matrix, old, without, objective, beta) - 3e-4


def test_a_solution_that_is_not_reached_is_said(caplog):
    progress_weights(random_matrix(np.random.default_rng(3), 64), np.ones(64), beta=1e-3, max_iterations=50)
    assert "after 50 iterations; a larger `beta`" in caplog.text


def test_no_point_of_a_grid_is_better():
    rng = np.random.default_rng(2)
    for objective, beta in itertools.product(["worst", "mean"], [0.0, 0.5]):
        matrix, old = random_matrix(rng, 3), np.ones(3)
        new = progress_weights(matrix, old, objective=objective, beta=beta, floor=0.1, cap=2.5)
        grid = [
            np.array([a, b, 3 - a - b])
            for a, b in itertools.product(np.linspace(0.1, 2.5, 49), repeat=2)
            if 0.1 <= 3 - a - b <= 2.5
        ]
        best = max(value(matrix, old, point, objective, beta) for point in grid)
        assert value(matrix, old, new, objective, beta) >= best - 2e-4


def test_known_answers():
    """Two facts with gradients 3 and −1 times one direction: the plain step undoes the second."""
    matrix = np.array([[9.0, -3.0], [-3.0, 1.0]])
    assert predicted_progress(matrix, np.ones(2)) == pytest.approx([1.2, -0.4])
    balanced = progress_weights(matrix, np.ones(2), beta=0.0, floor=0.0, cap=2.0)
    assert balanced == pytest.approx([0.5, 1.5], abs=1e-3)  # 3 v_1 = v_2: nobody is undone
    assert progress_weights(matrix, np.ones(2), beta=0.0, floor=0.8, cap=2.0) == pytest.approx([0.8, 1.2], abs=1e-3)
    assert progress_weights(matrix, np.ones(2), beta=1e6) == pytest.approx([1, 1], abs=1e-4)
    mean = progress_weights(matrix, np.ones(2), objective="mean", beta=0.0, floor=0.25, cap=4.0)
    assert mean == pytest.approx([1.75, 0.25])
    orthogonal = np.diag([1.0, 1.0, 2.0])
    assert progress_weights(orthogonal, np.ones(3), beta=0.0, floor=0.0, cap=3.0) == pytest.approx(
        [1.2, 1.2, 0.6], abs=2e-3
    )


def test_what_has_no_weight_or_no_gradient_keeps_its_weight():
    matrix = np.array([[9.0, -3.0, 1.0], [-3.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    new = progress_weights(matrix, np.array([1.0, 1.0, 0.0]), beta=0.0, floor=0.0, cap=2.0)
    assert new == pytest.approx([0.5, 1.5, 0.0], abs=1e-3)
    assert progress_weights(np.zeros((3, 3)), np.ones(3)) == pytest.approx([1, 1, 1])
    assert progress_weights(np.ones((1, 1)), np.ones(1)).tolist() == [1.0]


def test_the_order_of_the_facts_changes_nothing():
    rng = np.random.default_rng(3)
    matrix, old, order = random_matrix(rng, 20), rng.lognormal(0, 1, 20), rng.permutation(20)
    one = progress_weights(matrix, old)
    other = progress_weights(matrix[np.ix_(order, order)], old[order])
    assert other == pytest.approx(one[order], abs=1e-6)


def test_a_large_sample_with_gradients_that_differ_tenfold():
    rng = np.random.default_rng(4)
    gradients = rng.normal(size=(64, 200)) * rng.lognormal(0, 1, size=(64, 1))
    matrix, old = gradients @ gradients.T, np.ones(64)
    new = progress_weights(matrix, old, tolerance=1e-3)
    require_allowed(old, new, 0.25, 4.0)
    assert predicted_progress(matrix, new).min() > predicted_progress(matrix, old).min()
