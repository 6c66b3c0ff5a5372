"""The speed that is logged: facts of the epoch over the time of its steps."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lit_semantic_peft.callbacks import TrainingRate, training_rate


def test_facts_over_the_time_of_the_steps_without_fillers(monkeypatch):
    now = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(training_rate, "time", SimpleNamespace(monotonic=lambda: next(now)))
    module, rate = Mock(), TrainingRate()
    rate.on_train_epoch_start(Mock(), module)
    for fillers in ([False, False, False], [False, False, True]):
        rate.on_train_batch_end(Mock(), module, None, SimpleNamespace(is_filler=torch.tensor(fillers)), 0)
    rate.on_train_epoch_end(Mock(), module)
    (name, value), settings = module.log.call_args
    assert (name, value) == ("train/facts_per_s", pytest.approx(5 / 4))
    assert settings["reduce_fx"] == "sum"  # over the processes


def test_an_epoch_without_a_step_has_no_speed():
    module, rate = Mock(), TrainingRate()
    rate.on_train_epoch_start(Mock(), module)
    rate.on_train_epoch_end(Mock(), module)
    module.log.assert_not_called()


def test_the_rate_is_that_of_the_step_to_come():
    module = Mock()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    TrainingRate().on_before_optimizer_step(Mock(), module, optimizer)
    assert module.log.call_args.args == ("train/lr", 0.25)
