"""What can be refused before anything heavy is imported: a file or key that is not there, a run folder that is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_semantic_peft.errors import InputError

if TYPE_CHECKING:
    from lit_semantic_peft.cli.options import KnownOptions

DEFAULT_RUN = "runs/default"
"""The run folder where none is named."""

_NO_RUN = ("help_all", "print_config", "ckpt_path", "trainer.fast_dev_run", "trainer")
"""Options with which a command runs nothing, goes on with a run, or sets the folder in another way."""
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
_UNSET = (None, False, "null", "false", "0")
_FOLDER = "trainer.default_root_dir"

OF_A_TRAINING = ("manifest.json", "config.yaml", "summary.json")
"""Files of a run folder that show that a training was in it, as `RunPaths` names them."""


def refuse_early(arguments: Sequence[str]) -> None:
    """Refuses what a look at the options, the configuration and the disk shows; the parser finds the rest.

    Args:
        arguments: The command and its options.

    Raises:
        InputError: If a configuration file does not exist, or means something else than it says; if an option or a key
            of a file does not exist; if the run folder of a new training has a run in it; or if a variable of the
            environment is no number.
    """
    from lit_semantic_peft.cli.configuration import is_file, read_configuration, refuse_option
    from lit_semantic_peft.cli.options import KnownOptions

    for name in _RANKS:
        if not os.environ.get(name, "0").isdecimal():
            raise InputError(f"The environment variable {name} must be a number, got {os.environ[name]!r}. Unset it.")
    known = KnownOptions()
    command, options = arguments[0], list(_options(arguments[1:]))
    settings: dict[str, Any] = {}
    asked: list[str] = []
    for name, value in options:
        if name != "config":
            asked.append(name)
            settings[name] = True if value is None else value
            if value is not None:
                refuse_option(name, value, known.groups)
        elif value is not None:
            of_file = dict(_flat(read_configuration(value, known.groups)))
            _refuse_unknown(known, command, list(of_file), f"{value}: " if is_file(value) else "")
            settings.update(of_file)
    _refuse_unknown(known, command, asked)
    if command != "fit" or rank() != 0 or any(settings.get(name) not in _UNSET for name in _NO_RUN):
        return
    folder = Path(str(settings.get(_FOLDER) or DEFAULT_RUN))
    with suppress(RuntimeError):  # a user that there is not
        folder = folder.expanduser()
    if any((folder / name).is_file() for name in OF_A_TRAINING):
        raise run_exists(folder)


def run_exists(folder: Path) -> InputError:
    """The refusal to train into a folder that holds a run.

    Args:
        folder: The run folder.
    """
    return InputError(
        f"The run folder {folder} exists already. Go on with it by `--ckpt_path last`, choose another by "
        "`--trainer.default_root_dir runs/NAME`, or delete it."
    )


def rank() -> int:
    """This process's number in a job of torchrun, SLURM or Lightning; 0 where it is alone, or that is no number."""
    given = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return int(given) if given.isdecimal() else 0


def _refuse_unknown(known: "KnownOptions", command: str, keys: Sequence[str], place: str = "") -> None:
    if unknown := known.unknown(command, keys):
        from lit_semantic_peft.cli.unknown import unknown_setting

        valid = {*known.defaults, *known.of_command(command), *known.groups}
        raise InputError(unknown_setting(unknown, valid, place))


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its path, and also the section that it stands in."""
    if not isinstance(config, Mapping):
        return
    for name, value in config.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            yield key, value
        elif "class_path" in value or not value:
            yield key, None
        else:
            yield from _flat(value, f"{key}.")


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The options in order, each with its value; None for a flag."""
    for at, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.partition("=")
        following = arguments[at + 1 : at + 2]
        if name == "-c":
            name = "--config"
        if not name.startswith("--"):
            continue
        if equals:
            yield name[2:], value
        else:
            yield name[2:], following[0] if following and not following[0].startswith("-") else None
