"""A W&B logger that never blocks training, and whose failures never end it."""

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import RunFolder

logger = logging.getLogger(__name__)

_GIVE_UP_AFTER = 5  # failures in a row

_END = "the end of the run"  # is tried in any case
_Call = tuple[str, Callable[[], Any]]


class NonBlockingWandbLogger(WandbLogger):
    """Lightning's `WandbLogger`, with the same arguments, but without effect on training if W&B is slow or fails.

    The command line puts it in place of a configured `WandbLogger`, by `take_over`.

    - Calls go through a bounded queue to a thread. If the queue is full, the call is dropped; a call that fails is lost
      too, and after five failures in a row nothing more is tried. A warning names what was lost first, and the end of
      each stage gives the number of all lost calls.
    - Where W&B refuses the connection or there is no key, the run is written to a file for `wandb sync`.
    - `close` ends the run if this logger opened it, so that the next logger in the same process opens another one.

    Attributes:
        records_terminal: Whether W&B gets what the terminal shows.
        queue_size: Most calls that wait; one takes well below a millisecond.
        wait_seconds: How long the end of training waits for the calls that are still in the queue.
        finish_seconds: How long the end of the command waits for uploads; wandb itself waits without limit.
    """

    records_terminal = True
    queue_size = 1000
    wait_seconds = 30.0
    finish_seconds = 600.0

    # Defaults of the class, so that the arguments stay those of the class above.
    _calls: "queue.Queue[_Call | None] | None" = None
    _failures_in_a_row = 0
    _num_lost = 0
    _num_lost_told = 0
    _is_opened_here = False
    _is_patient = True

    @staticmethod
    def take_over(configured: WandbLogger) -> None:
        """Makes a logger that has not opened its run yet one of this class.

        The configuration keeps naming Lightning's class: jsonargparse finds the arguments that are passed on to
        `wandb.init` only in the class that passes them.

        Args:
            configured: The logger.
        """
        if type(configured) is WandbLogger and configured._experiment is None:
            configured.__class__ = NonBlockingWandbLogger

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; opened by the first access.

        Raises:
            InputError: If W&B refuses a setting, such as the name of the project.
        """
        if self._experiment is None:
            self._open()
        return self._experiment

    @rank_zero_only
    def submit(self, what: str, call: Callable[[], Any]) -> None:
        """Queues a call for the thread that talks to W&B; returns at once.

        Args:
            what: What is lost if the call fails, for the message.
            call: The call.
        """
        if self._calls is None:
            self._calls = queue.Queue(self.queue_size)
            threading.Thread(target=self._work, args=(self._calls,), name="wandb calls", daemon=True).start()
        try:
            self._calls.put_nowait((what, call))
        except queue.Full:
            self._lose(what, "its queue is full")

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        at = "" if step is None else f" at step {step}"
        log_metrics = super().log_metrics
        self.submit(f"{', '.join(metrics)}{at}", lambda: log_metrics(metrics, step))

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        log_hyperparams = super().log_hyperparams
        self.submit("the configuration", lambda: log_hyperparams(params))

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Waits up to `wait_seconds` for the queue to empty, and warns of lost calls."""
        finalize = super().finalize
        if self._experiment is not None:
            self.submit("the checkpoints", lambda: finalize(status))
            self._drain(self.wait_seconds)

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """Ends the W&B run, if this logger opened it. Waits for its uploads, for a limited time.

        Args:
            exit_code: 0 where the command ended well.
        """
        run = self._experiment
        if run is not None and self._is_opened_here:
            self.submit(_END, lambda: run.finish(exit_code=exit_code))
            self._drain(self.finish_seconds + self.wait_seconds)
        # Only now: a queued call that found no run would open another one.
        calls, self._calls, self._experiment = self._calls, None, None
        if calls is not None and not calls.full():
            calls.put_nowait(None)  # the thread ends

    def _open(self) -> None:
        import wandb

        self._is_opened_here = wandb.run is None
        if self._offline:
            # Unlike the base class, which would set it for every later run of the process.
            self._offline, self._wandb_init["mode"] = False, "offline"
        if isinstance(given := self._wandb_init.get("settings") or {}, dict):
            own: dict[str, Any] = {} if self.records_terminal else {"console": "off"}
            if "WANDB_FINISH_TIMEOUT" not in os.environ:
                own["finish_timeout"] = self.finish_seconds
            self._wandb_init["settings"] = own | given
        try:
            _ = super().experiment  # opens it
        except Exception as error:  # no connection, no key, no free disk: each has its own type
            if self._wandb_init.get("mode") == "offline":
                raise InputError(f"W&B cannot write a run: {error}") from error
            logger.warning(
                "W&B cannot open the run online (%s). It is written below %s; `wandb sync` sends it later.",
                _first_line(error),
                RunFolder(self._save_dir or ".").paths.wandb,
            )
            self._wandb_init["mode"] = "offline"
            self._open()

    def _work(self, calls: "queue.Queue[_Call | None]") -> None:
        while (item := calls.get()) is not None:
            what, call = item
            try:
                is_given_up = self._failures_in_a_row >= _GIVE_UP_AFTER and what != _END
                if self._calls is calls and not is_given_up:  # else the logger is closed
                    call()
                    self._failures_in_a_row = 0
                else:
                    self._num_lost += 1
            except Exception as error:  # whatever wandb, its service or the network raises
                self._failures_in_a_row += 1
                self._lose(what, _first_line(error))
            finally:
                calls.task_done()

    def _lose(self, what: str, why: str) -> None:
        if not self._num_lost:
            logger.warning("W&B did not take %s (%s). The run goes on, and its folder keeps everything.", what, why)
        self._num_lost += 1

    def _drain(self, seconds: float) -> None:
        calls = self._calls
        if calls is None:
            return
        with calls.all_tasks_done:
            is_done = calls.all_tasks_done.wait_for(
                lambda: not calls.unfinished_tasks, seconds if self._is_patient else 0.0
            )
        if not is_done and self._is_patient:
            self._is_patient = False  # once is enough
            logger.warning("W&B has not taken %d calls after %.0f s; not waiting longer.", calls.qsize() + 1, seconds)
        if self._num_lost > self._num_lost_told:
            self._num_lost_told = self._num_lost
            logger.warning("W&B missed %d calls of this run in all.", self._num_lost)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
