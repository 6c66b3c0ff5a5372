"""How far a run is said to be."""

import logging
import re
import sys

import pytest
from lightning.pytorch import Trainer
from lit_semantic_peft.callbacks import ProgressLog, StepBar, progress

from fixtures.training import fit


@pytest.fixture
def said(tiny_model, facts_file, caplog):
    """The lines of a training of 12 facts in steps of 4."""

    def run(every_seconds=1e9, **settings):
        caplog.set_level(logging.INFO, logger="lit_semantic_peft")
        fit(
            tiny_model,
            facts_file,
            trainer={"limit_val_batches": None, **settings},
            callbacks=[ProgressLog(every_seconds)],
        )
        return [record.getMessage() for record in caplog.records if record.name == progress.__name__]

    return run


def test_an_epoch_has_a_line(said):
    first, second = said(max_epochs=2)
    number = r"loss \d+\.\d{3}, teacher-forced recall \d+%, \d+ s"
    assert re.fullmatch(rf"Epoch 1 of 2 ended, step 3 of 6 \(about \d+ s left\): {number}", first)
    assert re.fullmatch(rf"Epoch 2 of 2 ended, step 6 of 6: {number}", second)


def test_where_steps_end_the_training_epochs_have_no_end(said):
    lines = said(max_epochs=-1, max_steps=4)
    assert [line.split(" (")[0].split(":")[0] for line in lines] == [
        "Epoch 1 ended, step 3 of 4",
        "Epoch 2 ended, step 4 of 4",
    ]


def test_a_long_epoch_is_not_silent(said):
    lines = said(every_seconds=0.0, max_epochs=1)
    assert [line.split(" (")[0].split(":")[0] for line in lines] == [
        "Epoch 1 of 1, step 1 of 3",
        "Epoch 1 of 1, step 2 of 3",
        "Epoch 1 of 1, step 3 of 3",
        "Epoch 1 of 1 ended, step 3 of 3",
    ]


def test_nothing_is_logged_beside_a_bar(said, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert said(max_epochs=1, enable_progress_bar=True) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_epochs": 8}, "Epoch 3 of 8"),
        ({"max_epochs": -1, "max_steps": 40}, "Epoch 3, to step 40"),
        ({"max_epochs": -1}, "Epoch 3"),
    ],
)
def test_the_bar_counts_from_1_and_never_names_minus_2(settings, expected):
    bar = StepBar()
    bar._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[bar], **settings)
    assert bar._get_train_description(2).rstrip() == expected
