"""Communication between ranks outside of training. Every function here is a collective."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

from lit_semantic_peft.errors import InputError

T = TypeVar("T")


def from_all_ranks(value: T) -> list[T]:
    """The values of all ranks, in their order; the one value where there is one process.

    Args:
        value: This rank's; anything that can be pickled.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return [value]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def from_first_rank(work: Callable[[], T]) -> T:
    """The result of `work` on the first rank, sent to all; the others do not run it. Fails as `agreed` does.

    Args:
        work: Calls no collective; its result can be pickled.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return work()
    outcome: list[Any] = [agreed(lambda: work() if distributed.get_rank() == 0 else None)]
    distributed.broadcast_object_list(outcome, src=0)
    first: T = outcome[0]
    return first


def agreed(work: Callable[[], T]) -> T:
    """The result of `work` on this rank. If it fails on any rank, all of them raise, so that none waits for another.

    Args:
        work: Runs on every rank and calls no collective.

    Raises:
        InputError: On all ranks, with the message of the first rank that raised one.
        RuntimeError: On the other ranks, naming the rank and its error, where `work` raised anything else.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    said = None if failure is None else (type(failure).__name__, str(failure), isinstance(failure, InputError))
    for rank, message in enumerate(from_all_ranks(said)):
        if message is None:
            continue
        if failure is not None:
            raise failure
        kind, text, is_input_error = message
        raise InputError(text) if is_input_error else RuntimeError(f"Rank {rank} failed. {kind}: {text}")
    return result


def my_share(items: Sequence[T]) -> tuple[list[T], bool]:
    """This rank's share of some items, and whether it is the first rank.

    Args:
        items: The same on all ranks.

    Returns:
        Every n-th item, n the number of ranks, starting at this rank's index; all where there is one process.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return list(items), True
    rank = distributed.get_rank()
    return list(items[rank :: distributed.get_world_size()]), rank == 0
