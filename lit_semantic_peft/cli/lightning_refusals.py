"""What Lightning refuses: settings of its trainer and callbacks that show only once they are used."""

import linecache
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

import lit_semantic_peft
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base_files import first_line

_OURS, _THEIRS = (str(Path(str(package.__file__)).parent) + os.sep for package in (lit_semantic_peft, lightning))
_CONNECTING = str(Path(_THEIRS, "fabric", "utilities", "distributed.py"))
_CHECKPOINTS = str(Path(_THEIRS, "pytorch", "trainer", "connectors", "checkpoint_connector.py"))
_CALLBACKS = str(Path(_THEIRS, "pytorch", "callbacks")) + os.sep
_HERE = ("127.0.0.1", "localhost")
_OF_VALUES = (MisconfigurationException, ValueError, TypeError, ZeroDivisionError, AssertionError)


@contextmanager
def lightning_refusals() -> Iterator[None]:
    """Turns what Lightning raises of its settings into an input error; errors of anything else go on.

    An error is Lightning's where it says so by its type, where its own code raises it of a value, where the code of one
    of its callbacks fails on this module, where processes cannot be connected, or where it takes up a checkpoint.

    Raises:
        InputError: With Lightning's words, and the callback's name where it is one's.
    """
    try:
        yield
    except (InputError, OSError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        frames, lines = zip(*traceback.walk_tb(error.__traceback__), strict=True)
        known = [frame for frame in frames if frame.f_code.co_filename.startswith((_OURS, _THEIRS))]
        if any(_restores(frame) for frame in frames):
            said = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
            raise InputError(f"`ckpt_path`: the checkpoint cannot be restored: {said}. Take another.") from error
        last = known[-1] if known else None
        if last is None or not last.f_code.co_filename.startswith(_THEIRS):
            raise
        is_own = last is frames[-1]
        # Misses something on the module, which torch says, or fails itself; what a logger's server says is not of it.
        callback = _callback_of(known) if is_own or isinstance(error, AttributeError) else None
        # A tensor that cannot be moved or has no memory is a RuntimeError too, but of no `raise` of Lightning's.
        is_raised = linecache.getline(last.f_code.co_filename, lines[-1]).lstrip().startswith("raise")
        is_about_values = is_own and isinstance(error, (*_OF_VALUES, RuntimeError) if is_raised else _OF_VALUES)
        is_about_processes = last.f_code.co_filename == _CONNECTING
        if not (callback or is_about_values or is_about_processes or isinstance(error, MisconfigurationException)):
            raise
        place = f"`trainer.callbacks`: {callback}" if callback else "`trainer`"
        kind = "" if isinstance(error, MisconfigurationException | RuntimeError) else f" ({type(error).__name__})"
        raise InputError(f"{place}: {first_line(error).rstrip('.!')}.{kind}") from error


def require_other_nodes(trainer: Trainer) -> None:
    """Refuses to wait for machines that cannot find this one.

    Args:
        trainer: The trainer.

    Raises:
        InputError: If there are to be several, and neither a launcher nor an address is given.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and environment.main_address in _HERE:
        raise InputError(
            f"`trainer.num_nodes` is {trainer.num_nodes}, but no other machine could find this one. Start the command "
            "by torchrun or SLURM, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each machine."
        )


def _restores(frame: FrameType) -> bool:
    """Whether Lightning takes up a checkpoint in a frame."""
    name = frame.f_code.co_name.removeprefix("_")
    return frame.f_code.co_filename == _CHECKPOINTS and name.startswith(("restore", "resume"))


def _callback_of(frames: Sequence[FrameType]) -> str | None:
    """The class of Lightning's callback in whose code the last of these frames are."""
    for frame in reversed(frames):
        if frame.f_code.co_filename.startswith(_OURS):
            return None
        if frame.f_code.co_filename.startswith(_CALLBACKS) and "self" in frame.f_locals:
            return type(frame.f_locals["self"]).__name__
    return None
