"""What is checked before anything is loaded: settings that would be ignored, and the checkpoint."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from lit_semantic_peft.compatibility import refuse_incompatible
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.situation import Situation

logger = logging.getLogger(__name__)

_LEAST = {
    **{"check_val_every_n_epoch": 1, "log_every_n_steps": 0, "min_epochs": 0, "min_steps": 0},
    "gradient_clip_val": 0,
}

_MOST_PER_CORE = 4

_OWN, _VERSION = "lit_semantic_peft", "pytorch-lightning_version"
_FORM = {
    **dict.fromkeys((_OWN, "state_dict", "loops", "callbacks"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    **dict.fromkeys(("epoch", "global_step"), int),
    _VERSION: str,
}
"""What Lightning's and our entries of a checkpoint are."""

# The callbacks that every run has, by class name, and their sections of the YAML.
_SECTIONS = {
    "AdapterCheckpoint": "checkpoint",
    "AdapterExport": "export",
    "InterferenceMonitor": "interference",
    "FactReport": "report",
}


def refuse_what_would_be_ignored(command: str, config: Any) -> None:
    """Refuses settings that another one overrides, and those without which the command line cannot work.

    Args:
        command: The command.
        config: Its configuration.

    Raises:
        InputError: If there is one.
    """
    if config.data.get("prompts") == []:
        raise InputError("`data.prompts` is empty. Write a prompt into it, or leave it out to ask the facts.")
    has_none = config.trainer.get("enable_checkpointing") is False or bool(config.trainer.get("barebones"))
    for name, least in _LEAST.items():
        if (value := config.trainer.get(name)) is not None and not value >= least:  # NaN is not, either
            raise InputError(f"`trainer.{name}` must be at least {least}, got {value}")
    if config.trainer.get("val_check_interval") == 0:
        raise InputError("`trainer.val_check_interval` must be above 0; leave it out for one validation an epoch.")
    _refuse_more_processes_than_cores(config.trainer.get("devices"), str(config.trainer.get("accelerator", "auto")))
    refuse_incompatible(Situation(stage=command, is_command_line=True, writes_checkpoints=not has_none))
    callbacks = config.trainer.get("callbacks") or []
    for one in callbacks if isinstance(callbacks, list) else [callbacks]:
        section = _SECTIONS.get(str(one.get("class_path", "")).rpartition(".")[2])
        if section is not None:
            raise InputError(
                f"`trainer.callbacks` names {one.class_path}, which every run has already. Its settings are the "
                f"section `{section}`."
            )


def _refuse_more_processes_than_cores(devices: int | str | list[int] | None, accelerator: str) -> None:
    """Refuses far more processes on a CPU than it has cores: each loads the base model, and all would wait."""
    cores = os.cpu_count() or 1
    is_number = isinstance(devices, int) or (isinstance(devices, str) and devices.isdecimal())
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if is_number and on_cpu and int(str(devices)) > _MOST_PER_CORE * cores:
        raise InputError(
            f"`trainer.devices`: expected at most {_MOST_PER_CORE * cores} processes on a CPU with {cores} cores, got "
            f"{devices}; each loads the base model. Set it to 1, or give the job GPUs."
        )


def local_folder(name: str) -> str:
    """The run folder, with `~` as the user's home.

    Args:
        name: As it was given.

    Raises:
        InputError: If it is not on this machine, or its name is no text, which not every library takes.
    """
    path: Path | None
    try:
        path = Path(name).expanduser()
        os.fspath(path).encode()
    except (RuntimeError, UnicodeEncodeError):
        path = None
    if path is None or not name.strip() or "://" in name or "\0" in name:
        raise InputError(f"`trainer.default_root_dir`: expected a folder on this machine, named by text, got {name!a}.")
    return str(path)


def inputs_of(config: Any) -> list[str]:
    """The files and folders that a command may read, among names that are neither.

    Args:
        config: Its configuration.
    """
    return [one for one in (config.data.facts, config.model.adapter) if one]


def checkpoint_of(command: str, ckpt_path: str | None, run_folder: RunFolder) -> str | None:
    """The checkpoint that `ckpt_path` means, which can be read; None to start from the beginning.

    Args:
        command: The command.
        ckpt_path: `last`, or a file.
        run_folder: The run's own folder.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    if ckpt_path is None:
        return None
    path = Path(ckpt_path)
    if ckpt_path == "last":
        path = run_folder.paths.last_checkpoint
        if command == "fit" and not path.is_file() and run_folder.is_before_first_checkpoint():
            logger.info("No checkpoint in %s yet: training starts from the beginning", run_folder.path)
            return None
        if not path.is_file():
            raise InputError(
                f"`ckpt_path` is `last`, but there is no {path}. Leave it out to start from the beginning, or "
                "name the run folder by `--trainer.default_root_dir`."
            )
    elif path.is_dir():
        raise InputError(
            f"`ckpt_path` {str(path)!r} is a folder, as other tools write checkpoints; expected a file such as "
            f"{RunFolder('runs/NAME').paths.last_checkpoint}."
        )
    elif not path.is_file():
        raise InputError(f"`ckpt_path` {str(path)!r} is no checkpoint file.")
    _check_readable(path, is_resumed=command == "fit")
    return str(path)


def _check_readable(path: Path, is_resumed: bool) -> None:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a truncated zip, a pickle of another tool, text: each has its own type
        raise InputError(f"`ckpt_path` {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get(_OWN) is None:
        raise InputError(f"`ckpt_path` {str(path)!r} was not written by lit-semantic-peft.")
    lacking = [name for name in _FORM if is_resumed and name not in checkpoint]
    if damage := f"it lacks `{lacking[0]}`" if lacking else _damage(checkpoint):
        raise InputError(f"`ckpt_path` {str(path)!r} is damaged: {damage}. Take another checkpoint.")


def _damage(checkpoint: dict[str, Any]) -> str | None:
    """What in a checkpoint is not as it is written."""
    for name, kind in _FORM.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            return f"`{name}` is of type {type(checkpoint[name]).__name__}, not {kind.__name__}"
    if not isinstance(checkpoint[_OWN].get("base_fingerprint"), str):
        return f"`{_OWN}` names no base model"
    for name in ("optimizer_states", "lr_schedulers"):
        if not all(isinstance(one, dict) for one in checkpoint.get(name, [])):
            return f"`{name}` holds something else than states"
    if not all(isinstance(one, torch.Tensor) for one in checkpoint.get("state_dict", {}).values()):
        return "`state_dict` holds something else than tensors"
    if min(checkpoint.get("epoch", 0), checkpoint.get("global_step", 0)) < 0:
        return "its numbers of epochs and steps are below 0"
    try:
        Version(checkpoint.get(_VERSION, "0"))
    except InvalidVersion:
        return f"`{_VERSION}` is no version"
    return None
