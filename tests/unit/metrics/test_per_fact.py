import math
import warnings

import pytest
import torch
from lit_semantic_peft.metrics import (
    GradientInterference,
    LearningDynamics,
    MeanOverFacts,
    PerFactMean,
    PushedAway,
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_per_fact_mean_is_the_mean_of_each_facts_values():
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(40, generator=generator)
    index = torch.randint(0, 9, (40,), generator=generator)
    metric = PerFactMean(num_facts=10)
    for start in range(0, 40, 7):
        metric.update(value[start : start + 7], index[start : start + 7])
    result = metric.compute()
    for fact in range(10):
        values = value[index == fact]
        assert result[fact].item() == pytest.approx(values.mean().item(), nan_ok=True)
    assert result[9].isnan()


def test_facts_that_the_sampler_repeats_count_once():
    plain, padded = MeanOverFacts(3), MeanOverFacts(3)
    recalled = torch.tensor([True, False, False])
    plain.update(recalled, torch.arange(3))
    padded.update(torch.cat([recalled, recalled[:1]]), torch.tensor([0, 1, 2, 0]))
    assert plain.compute() == padded.compute() == pytest.approx(1 / 3)


def test_what_was_never_measured_is_nan_and_not_zero():
    metric = MeanOverFacts(5)
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert metric.compute().isnan()
    metric.update(torch.tensor([2.0]), torch.tensor([4]))
    assert metric.compute() == 2.0
    metric.update(torch.tensor([math.nan]), torch.tensor([1]))
    assert metric.compute().isnan()  # a measured NaN is not hidden


def test_the_shape_stays_for_one_fact():
    metric = PerFactMean(1)
    metric.update(torch.tensor([2.0]), torch.tensor([0]))
    assert metric.compute().shape == (1,)
    assert metric.compute().shape == (1,)  # the cached result too
    assert metric.clone().compute().tolist() == [2.0]
    away = PushedAway(1)
    away.update(torch.tensor([0.5]), torch.tensor([0.75]), torch.tensor([0]))
    result = away.compute()
    assert {name: tuple(value.shape) for name, value in result.items()} == {
        "distance_delta": (1,),
        "is_pushed_away": (1,),
        "fact_index": (1,),
        "share": (),
    }
    interference = GradientInterference([4], [1.0], num_trained_facts=1)
    interference.update(torch.tensor([[9.0]]))
    assert interference.compute()["gradient_dot"].shape == (1, 1)
    assert interference.compute()["worst_aggressor"].tolist() == [-1]


def test_reset_starts_over():
    metric = PerFactMean(2)
    metric.update(torch.ones(2), torch.arange(2))
    metric.reset()
    metric.update(torch.tensor([3.0]), torch.tensor([1]))
    assert metric.compute()[0].isnan()
    assert metric.compute()[1] == 3.0


def test_values_that_require_gradients_are_detached():
    metric = PerFactMean(2)
    metric.update(torch.ones(2, requires_grad=True), torch.arange(2))
    assert not metric.compute().requires_grad


@pytest.mark.parametrize("kind", [PerFactMean, LearningDynamics])
def test_shapes_are_checked(kind):
    with pytest.raises(ValueError, match="same shape"):
        kind(3).update(torch.ones(2), torch.arange(3))
    with pytest.raises(ValueError, match="num_facts"):
        kind(0)


def test_pushed_away_needs_more_than_epsilon():
    metric = PushedAway(5, epsilon=0.25)
    before = torch.tensor([0.5, 0.5, 0.5, 0.5])
    metric.update(before, torch.tensor([0.75, 1.0, 0.25, 0.5]), torch.tensor([0, 1, 2, 4]))
    result = metric.compute()
    assert result["fact_index"].tolist() == [1]
    assert result["is_pushed_away"].tolist() == [False, True, False, False, False]
    assert result["share"] == 0.25
    assert result["distance_delta"].tolist()[:3] == [0.25, 0.5, -0.25]
    assert result["distance_delta"][3].isnan()
    with pytest.raises(ValueError, match="epsilon"):
        PushedAway(5, epsilon=-0.1)
