import itertools
import math
import warnings

import pytest
import torch
from lit_semantic_peft.metrics import LearningDynamics


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def history(epochs=8, facts=30):
    return torch.rand(epochs, facts, generator=torch.Generator().manual_seed(0)) < 0.5


def assert_says(metric, whole):
    """The definitions, in plain loops."""
    result = metric.compute()
    for fact, recalled in enumerate(whole.T.tolist()):
        assert result["first_learned"][fact] == (recalled.index(True) if True in recalled else -1)
        forgotten = sum(before and not after for before, after in itertools.pairwise(recalled))
        assert result["forgetting_events"][fact] == forgotten
        assert result["is_recalled"][fact] == recalled[-1]
        since = recalled[recalled.index(True) :] if True in recalled else []
        expected = sum(since) / len(since) if since else math.nan
        assert float(result["stability"][fact]) == pytest.approx(expected, nan_ok=True)
    assert result["num_measured"].tolist() == [len(whole)] * whole.shape[1]


def feed(metric, recalled, size=7):
    index = torch.randperm(len(recalled), generator=torch.Generator().manual_seed(1))
    for start in range(0, len(index), size):
        rows = index[start : start + size]
        metric.update(recalled[rows], rows)


def test_streaming_equals_the_whole_history():
    metric = LearningDynamics(30)
    for epoch, recalled in enumerate(history()):
        feed(metric, recalled)
        metric.end_validation()
        assert_says(metric, history()[: epoch + 1])  # also that nothing stale is cached


def test_repeated_facts_change_nothing():
    metric = LearningDynamics(30)
    for recalled in history():
        feed(metric, recalled)
        metric.update(recalled[:3], torch.arange(3))
        metric.end_validation()
    assert_says(metric, history())


def test_a_resumed_run_continues():
    metric = LearningDynamics(30)
    for recalled in history()[:3]:
        feed(metric, recalled)
        metric.end_validation()
    resumed = LearningDynamics(30)
    resumed.load_state_dict(metric.state_dict())
    assert_says(resumed, history()[:3])
    for recalled in history()[3:]:
        feed(resumed, recalled)
        resumed.end_validation()
    assert_says(resumed, history())


def test_what_is_not_measured_keeps_its_state():
    metric = LearningDynamics(2)
    metric.update(torch.tensor([True]), torch.tensor([0]))
    metric.end_validation()
    metric.end_validation()
    metric.update(torch.tensor([False]), torch.tensor([0]))
    metric.end_validation()
    result = metric.compute()
    assert result["first_learned"].tolist() == [0, -1]
    assert result["forgetting_events"].tolist() == [1, 0]
    assert result["num_measured"].tolist() == [2, 0]


def test_validations_may_carry_the_trainers_epoch():
    metric = LearningDynamics(1)
    for epoch, recalled in ((0, False), (5, False), (10, True)):
        metric.update(torch.tensor([recalled]), torch.tensor([0]))
        metric.end_validation(epoch)
    assert metric.compute()["first_learned"].tolist() == [10]
    with pytest.raises(ValueError, match="epoch"):
        metric.end_validation(-1)
