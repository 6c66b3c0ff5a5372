"""What Lightning refuses is an input error; what fails inside of it for other reasons keeps its traceback."""

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lit_semantic_peft.cli.lightning_refusals import lightning_refusals
from lit_semantic_peft.errors import InputError


class FailingLogger:
    """A logger that has no memory left."""

    def log_metrics(self, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")


class NetworkError(Exception):
    """Of a logger's server."""


class OfflineLogger:
    def log_metrics(self, *_, **__):
        raise NetworkError("no connection")


class Connector:
    should_update_logs = True


@pytest.mark.parametrize("logger", [FailingLogger(), OfflineLogger()])
def test_an_error_behind_a_callback_is_not_the_callbacks(logger, monkeypatch):
    monitor = LearningRateMonitor(logging_interval="step")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(Trainer, "loggers", [logger])
    monkeypatch.setattr(monitor, "_extract_stats", lambda *_: {"lr": 1.0})
    monkeypatch.setattr(trainer, "_logger_connector", Connector())
    with pytest.raises((torch.OutOfMemoryError, NetworkError)), lightning_refusals():
        monitor.on_train_batch_start(trainer)


def test_a_tensor_that_cannot_be_moved_is_no_setting():
    with pytest.raises(NotImplementedError, match="meta"), lightning_refusals():
        move_data_to_device(torch.empty(2, device="meta"), torch.device("cpu"))


def test_what_lightning_raises_of_a_value_is_an_input_error():
    with pytest.raises(InputError, match="`trainer`"), lightning_refusals():
        Trainer(accelerator="cpu", logger=False, precision="64-nonsense")


def test_what_our_own_code_raises_goes_on():
    class Broken(LightningModule):
        def forward(self):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"), lightning_refusals():
        Broken()()
