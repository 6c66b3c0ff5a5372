import dataclasses
import logging

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import (
    FLOW,
    Focal,
    MediumConfidence,
    Online,
    Scheduled,
    Tempered,
    weights_of,
)
from lit_semantic_peft.semantics.weightings import Band, Proximity, Remoteness, Uniform, Weighting, loss_weights
from scipy.stats import rankdata

from unit.semantics.tables import table

ALL = [Uniform(), Proximity(), Proximity(3.0), Remoteness(0.5), Remoteness(), Band(), Band(0.0, 0.1)]


@pytest.mark.parametrize("weighting", ALL, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize(
    "distance",
    [[0.0, 2.0], [0.3], [0.0], [2.0], [0.7] * 5, np.linspace(0, 2, 101), [-1e-7, 2 + 1e-7, 1.0], [1e-300, 1.0]],
)
def test_weights_are_finite_and_have_mean_one(weighting, distance):
    weight = loss_weights(weighting, np.asarray(distance))
    assert np.isfinite(weight).all()
    assert (weight >= 0).all()
    assert weight.mean() == pytest.approx(1.0, abs=1e-12)
    if len(set(distance)) == 1:
        np.testing.assert_array_equal(weight, 1.0)


def test_formulas():
    distance = np.array([0.2, 0.9, 1.7])
    for weighting, raw in [
        (Proximity(2.0), (1 - distance / 2) ** 2),
        (Remoteness(0.5), np.sqrt(distance / 2)),
        (Band(0.8, 0.3), np.exp(-((distance - 0.8) ** 2) / (2 * 0.3**2))),
    ]:
        np.testing.assert_allclose(weighting.raw(torch.tensor(distance)), raw, rtol=1e-12)
        np.testing.assert_allclose(loss_weights(weighting, distance), raw / raw.mean(), rtol=1e-12)


def test_gamma_zero_is_uniform_also_at_the_ends():
    for weighting in (Proximity(0.0), Remoteness(0.0)):
        np.testing.assert_array_equal(loss_weights(weighting, np.array([0.0, 1.0, 2.0])), 1.0)


@pytest.mark.parametrize(
    ("weighting", "distance"),
    [(Proximity(), [2.0, 2.0]), (Remoteness(), [0.0]), (Band(0.0, 1e-3), [1.0, 2.0]), (Proximity(1e6), [1.0, 1.5])],
)
def test_all_weights_zero_become_uniform_with_a_warning(weighting, distance, caplog):
    with caplog.at_level(logging.WARNING):
        weight = loss_weights(weighting, np.asarray(distance))
    np.testing.assert_array_equal(weight, 1.0)
    assert "every weight is zero" in caplog.text


def test_tiny_weights_keep_their_ratio():
    weight = loss_weights(Remoteness(100.0), np.array([2e-3, 4e-3]))  # raw weights around 1e-300
    assert weight[1] / weight[0] == pytest.approx(2.0**100, rel=1e-6)


def test_surprisal_enters_by_its_ranks_averaged_over_ties():
    rng = np.random.default_rng(0)
    surprisal = rng.integers(0, 20, 50) * 1.5
    by_rank = loss_weights(Proximity(), surprisal, is_rank_based=True)
    oracle = 1 - (rankdata(surprisal) - 1) / 49
    np.testing.assert_allclose(by_rank, oracle / oracle.mean(), rtol=1e-12)
    np.testing.assert_allclose(loss_weights(Proximity(), np.exp(surprisal), is_rank_based=True), by_rank)
    np.testing.assert_array_equal(loss_weights(Remoteness(), np.array([7.0]), is_rank_based=True), 1.0)
    np.testing.assert_array_equal(loss_weights(Remoteness(), np.full(4, 7.0), is_rank_based=True), 1.0)


def test_distances_outside_the_range_are_clipped_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        weight = loss_weights(Remoteness(), np.array([5.0, 2.0, 1.0, -3.0]))
    np.testing.assert_allclose(weight, np.array([1, 1, 0.5, 0]) / 0.625)
    assert "2 of 4 distances are outside [0, 2]" in caplog.text


def test_no_fact_has_no_weight():
    assert loss_weights(Proximity(), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_distances_that_are_no_numbers_are_refused(value):
    with pytest.raises(InputError, match="got 1 of 2"):
        loss_weights(Uniform(), np.array([0.1, value]))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Proximity(-1.0), "gamma"),
        (lambda: Remoteness(float("nan")), "gamma"),
        (lambda: Band(center=3.0), "center"),
        (lambda: Band(width=0.0), "width"),
    ],
)
def test_settings_out_of_range_are_named(make, named):
    with pytest.raises(InputError, match=f"`{named}`"):
        make()


def test_a_weighting_that_gives_negative_weights_is_named():
    class Tilted(Weighting):
        def raw(self, distance):
            return distance - 1.0

    with pytest.raises(InputError, match="Tilted"):
        loss_weights(Tilted(), np.array([0.0, 2.0]))
    with pytest.raises(ValueError, match="shape"):
        loss_weights(Tilted(), np.zeros((2, 2)))


RIVALS = [FLOW(), FLOW(0.5), Focal(), Focal(0.0), MediumConfidence(), MediumConfidence(0.0), Tempered(FLOW(), 2.0, 0.1)]


@pytest.mark.parametrize("weighting", RIVALS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize(
    "nll", [[0.0], [2.0], [0.0, 0.0], [0.0, 1e-12, 3.0], [5.0] * 4, [0.0, 800.0], np.linspace(0, 30, 50)]
)
def test_rivals_are_finite_and_have_mean_one(weighting, nll):
    weight = loss_weights(weighting, np.asarray(nll))
    assert np.isfinite(weight).all()
    assert weight.mean() == pytest.approx(1.0, abs=1e-12)
    if len(set(nll)) == 1:
        np.testing.assert_array_equal(weight, 1.0)


def test_formulas_of_the_rivals():
    nll = np.array([0.1, 0.7, 2.0, 5.0, 9.0])
    p = np.exp(-nll)
    for weighting, raw in [
        (FLOW(), np.exp(-nll / 2.0)),
        (FLOW(3.0), np.exp(-nll / 3.0)),
        (Focal(1.5), (1 - p) ** 1.5),
        (MediumConfidence(1.0), np.maximum(0, p * (1.0 - np.log(p / (1 - p))))),
        (Tempered(Focal(2.0), 4.0, 0.2), 0.2 + 0.8 * (1 - p) ** 0.5),
    ]:
        np.testing.assert_allclose(weighting.raw(torch.tensor(nll)), raw, rtol=1e-6)
        np.testing.assert_allclose(loss_weights(weighting, nll), raw / raw.mean(), rtol=1e-6)
    grid = MediumConfidence().raw(-torch.linspace(0.001, 0.999, 999, dtype=torch.float64).log())
    assert grid.argmax() == 499  # p = 1/2
    assert grid.max() == pytest.approx(1.0)


def test_the_column_is_the_one_that_a_weighting_reads():
    facts = dataclasses.replace(table([0.0, 1.0, 2.0]), base_nll=np.array([4.0, 0.0, 0.0]))
    np.testing.assert_allclose(weights_of(Proximity(), facts), [2.0, 1.0, 0.0])
    np.testing.assert_allclose(weights_of(Focal(1.0), facts), [3.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FLOW(0.0), "tau"),
        (lambda: Focal(-1.0), "gamma"),
        (lambda: MediumConfidence(float("nan")), "c"),
        (lambda: Tempered(Uniform(), temperature=0.0), "temperature"),
        (lambda: Tempered(Uniform(), floor=1.0), "floor"),
        (lambda: Tempered(Online(Uniform())), "weighting"),
        (lambda: Scheduled(last=Scheduled()), "weighting"),
        (lambda: Online(Scheduled()), "weighting"),
        (lambda: Online(FLOW()), "tau"),
        (lambda: Online(Tempered(FLOW())), "tau"),
    ],
)
def test_rivals_out_of_range_are_named(make, named):
    with pytest.raises(InputError, match=f"`{named}`"):
        make()
