"""Runs of a study side by side, each in a process of its own, that can be cancelled and go on later."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Cancelled(Exception):
    """The process was asked to end."""


def side_by_side(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], processes: int, threads: int
) -> Iterator[Result]:
    """Calls a function in so many processes at a time, and gives what it returns as it comes.

    Args:
        function: Of a module's top level.
        calls: Its arguments, call by call.
        processes: How many at a time; with 1 the calls are made in this process.
        threads: Of torch, in each process.

    Raises:
        Cancelled: If this process is asked to end, or one of the others has ended.
    """
    if processes == 1:
        set_up(threads)
        yield from (function(*arguments) for arguments in calls)
        return
    signal.signal(signal.SIGTERM, _cancel)
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update(environment)  # read by the libraries of the processes that are started now
    with ProcessPoolExecutor(processes, get_context("spawn"), set_up, (threads,)) as pool:
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
