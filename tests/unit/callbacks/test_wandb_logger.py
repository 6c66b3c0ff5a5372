import threading
from unittest.mock import Mock

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from lit_semantic_peft.callbacks import wandb_tables
from lit_semantic_peft.callbacks.wandb_logger import NonBlockingWandbLogger
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import fact_table

HANG = 60.0
"""Seconds after which what should have ended counts as hanging."""


class Run:
    """Stands for a W&B run; `stuck` calls wait until released."""

    def __init__(self, failures: int = 0, stuck: bool = False):
        self.logged: list[dict] = []
        self.finished: list[int] = []
        self.failures = failures
        self.release = threading.Event()
        if not stuck:
            self.release.set()

    def log(self, values):
        self.release.wait(HANG)
        if self.failures:
            self.failures -= 1
            raise BrokenPipeError("gone")
        self.logged.append(values)

    def finish(self, exit_code):
        self.finished.append(exit_code)


@pytest.fixture
def make(monkeypatch):
    def logger_of(run: Run) -> NonBlockingWandbLogger:
        monkeypatch.setattr(wandb, "init", lambda **settings: run)
        logger = NonBlockingWandbLogger(project="x")
        logger.wait_seconds = logger.finish_seconds = HANG
        assert logger.experiment is run  # opened here
        return logger

    return logger_of


def test_everything_arrives_in_order_and_the_thread_ends(make):
    run = Run()
    logger = make(run)
    for step in range(50):
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    logger.close(0)
    assert run.logged == [{"train/loss": 1.0 / (step + 1), "trainer/global_step": step} for step in range(50)]
    assert run.finished == [0]
    for thread in threading.enumerate():
        if thread.name == "wandb calls":
            thread.join(HANG)
            assert not thread.is_alive()


def test_a_full_queue_costs_calls_and_no_time(make, caplog):
    """Nobody waits for a call that is stuck: it still is when the logger has closed."""
    run = Run(stuck=True)
    logger = make(run)
    logger.queue_size, logger.wait_seconds = 10, 0.0
    for step in range(1000):
        logger.log_metrics({"train/loss": 0.0}, step)
    logger.finalize("success")
    logger.close(0)  # having waited in vain once, it does not wait again, for all of `finish_seconds`
    assert not run.release.is_set()
    assert run.logged == []
    text = caplog.text
    assert "W&B did not take train/loss at step 1" in text
    assert "its queue is full" in text
    assert text.count("not waiting longer") == 1
    assert "missed 9" in text
    run.release.set()


def test_a_passing_failure_loses_one_call(make, caplog):
    run = Run(failures=1)
    logger = make(run)
    logger.log_metrics({"val/efficacy_teacher_forced": 1.0, "val/nll": 0.5}, 3)
    logger.log_metrics({"val/efficacy_teacher_forced": 1.0}, 4)
    logger.close(0)
    assert [row["trainer/global_step"] for row in run.logged] == [4]
    assert "W&B did not take val/efficacy_teacher_forced, val/nll at step 3 (BrokenPipeError: gone)" in caplog.text
    assert "missed 1 calls" in caplog.text


def test_after_five_failures_in_a_row_only_the_end_is_tried(make, caplog):
    run = Run(failures=5)
    logger = make(run)
    for step in range(20):
        logger.log_metrics({"train/loss": 0.0}, step)
    logger.close(1)
    assert run.logged == []
    assert run.finished == [1]
    assert "missed 20 calls" in caplog.text


def test_a_run_that_was_open_before_is_not_ended(make):
    run = Run()
    logger = NonBlockingWandbLogger(project="x", experiment=run)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    logger.close(0)
    assert run.logged
    assert not run.finished


def test_a_setting_that_no_run_can_have_is_bad_input(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = NonBlockingWandbLogger(project="p" * 500, save_dir=str(tmp_path))
    with pytest.raises(InputError, match="project"):
        _ = logger.experiment


def test_it_takes_the_arguments_of_lightnings_logger():
    assert NonBlockingWandbLogger.__init__ is WandbLogger.__init__


def test_the_short_table_has_the_aggressor_in_words_unless_texts_stay_at_home(monkeypatch):
    logged = []
    monkeypatch.setattr(wandb_tables, "_to_wandb", lambda trainer, what, log: log(Mock(log=logged.append)))

    def as_rows(columns, data, log_mode):
        return [dict(zip(columns, row, strict=True)) for row in data]

    monkeypatch.setattr(wandb, "Table", as_rows)
    facts = fact_table(
        {
            "fact_id": ["a", "b"],
            "prompt": ["The seat of A is", "The seat of B is"],
            "target": ["Lund", "Bern"],
            "kept": [True, True],
            "answer_before": ["Rome", "Rome"],
            "answer_after": ["Lund", "Rome"],
            "efficacy_after": [True, False],
            "net_transfer": [0.5, -2.0],
            "worst_aggressor": [None, "a"],
        }
    )
    trainer = Mock(global_step=3)
    for with_text in (True, False):
        wandb_tables.log_fact_table(trainer, facts, 1, with_text=with_text)
    (full, private) = (one[wandb_tables.TABLE_KEY] for one in logged)
    short = {"fact_id": "b", "kept": True, "right": False}
    said = {"prompt": "The seat of B is", "target": "Bern", "before": "Rome", "after": "Rome"}
    assert full == [{**short, **said, "worst_aggressor": "The seat of A is Lund"}]
    assert private == [{**short, "worst_aggressor": "a"}]
