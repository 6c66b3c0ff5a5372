"""Runs of a study: side by side, each in a process of its own, cancelled and gone on with later."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from experiments.benchmarks.measured import provenance
from experiments.studies import Cancelled
from lit_semantic_peft.cli.run import run as run_command
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_text

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def recorded(
    about: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], write: Callable[[Mapping[str, Any]], None]
) -> tuple[str, float]:
    """Measures one run and writes its result, also where it fails: the other runs go on.

    Args:
        about: What is known of the run before.
        measure: Trains and gives what was found.
        write: Keeps a result.

    Returns:
        Its status, `done` or `failed`, and its seconds.

    Raises:
        Cancelled: If the process was asked to end; the result says so.
    """
    begin = time.monotonic()
    result = {"status": "done", **about}
    try:
        result |= measure()
    except (Cancelled, KeyboardInterrupt):
        write({**result, "status": "cancelled", "provenance": provenance()})
        raise
    except InputError as error:
        result |= {"status": "failed", "error": str(error)}
    except Exception as error:  # a defect
        logger.exception("A run failed")
        result |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    seconds = time.monotonic() - begin
    write({**result, "seconds": round(seconds, 1), "provenance": provenance()})
    return result["status"], seconds


@contextmanager
def trained(config: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """The folder of a run of `lit-semantic-peft fit`, gone afterwards.

    Args:
        config: Its YAML, as plain data.
        folder: Where it writes to.
    """
    shutil.rmtree(folder, ignore_errors=True)
    path = folder.with_suffix(".yaml")
    config = {**config, "trainer": {**config["trainer"], "default_root_dir": str(folder)}}
    write_text(path, yaml.safe_dump(config, sort_keys=False))
    try:
        run_command(["fit", "--config", str(path)])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)


def side_by_side(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    processes: int,
    threads: int,
    *,
    fresh: bool = False,
) -> Iterator[Result]:
    """Calls a function in so many processes at a time, and gives what it returns as it comes.

    Args:
        function: Of a module's top level.
        calls: Its arguments, call by call.
        processes: How many at a time; with 1 the calls are made in this process.
        threads: Of torch, in each process.
        fresh: Whether each call has a process of its own, also with 1, so that its peak memory is its own.

    Raises:
        Cancelled: If this process is asked to end, or one of the others has ended.
    """
    if processes == 1 and not fresh:
        set_up(threads)
        yield from (function(*arguments) for arguments in calls)
        return
    signal.signal(signal.SIGTERM, _cancel)
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update(environment)  # read by the libraries of the processes that are started now
    tasks = 1 if fresh else None
    with ProcessPoolExecutor(processes, get_context("spawn"), set_up, (threads,), max_tasks_per_child=tasks) as pool:
        futures = [pool.submit(_in_pool, function, arguments) for arguments in calls]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():  # they write down that their run was cancelled
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise Cancelled("a process has ended by itself, or was ended from outside") from error
            raise


def set_up(threads: int) -> None:
    """Prepares a process for runs: its threads, and that a request to end cancels the run.

    Args:
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, _cancel)


def _in_pool(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """In a process of the pool, which would take a cancelled run for a result and go on with the next one."""
    try:
        return function(*arguments)
    except (Cancelled, KeyboardInterrupt):
        os._exit(1)


def _cancel(number: int, frame: Any) -> None:
    raise Cancelled(f"signal {number}")
