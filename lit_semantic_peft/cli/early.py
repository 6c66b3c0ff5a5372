"""What can be refused before anything heavy is imported: a file, folder or key that is not there, a run that is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from lit_semantic_peft.errors import InputError

if TYPE_CHECKING:
    from lit_semantic_peft.cli.options import KnownOptions

DEFAULT_RUN = "runs/default"
"""The run folder where none is named."""

_NO_RUN = ("help_all", "print_config", "ckpt_path", "trainer.fast_dev_run", "trainer")
"""Options with which a command runs nothing, goes on with a run, or sets the folder in another way."""
_TEXT = (".jsonl", ".json", ".csv", ".tsv")
_SOON_READ = 2**22
"""Bytes of facts that are read in less time than torch needs to be imported."""
_SHOWN = ("help_all", "print_config")
"""Options with which a command shows settings and reads no file that they name."""
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
_UNSET = (None, False, "null", "false", "0")
_FOLDER = "trainer.default_root_dir"
_ADAPTER_CONFIG = "adapter_config.json"

OF_A_TRAINING = ("manifest.json", "config.yaml", "summary.json")
"""Files of a run folder that show that a training was in it, as `RunPaths` names them."""


def refuse_early(arguments: Sequence[str]) -> None:
    """Refuses what a look at the options, the configuration and the disk shows; the parser finds the rest.

    Args:
        arguments: The command and its options.

    Raises:
        InputError: If a configuration file does not exist, or means something else than it says; if an option or a key
            of a file does not exist; if facts, an adapter or a checkpoint are not where they are said to be; if facts
            in a file of moderate size cannot be used; if the run folder of a new training has a run in it; or if a
            variable of the environment is no number.
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
    if not any(name in settings for name in _SHOWN):
        _refuse_missing(command, settings)
    if command != "fit" or rank() != 0 or any(settings.get(name) not in _UNSET for name in _NO_RUN):
        return
    folder = Path(str(settings.get(_FOLDER) or DEFAULT_RUN))
    with suppress(RuntimeError):  # a user that there is not
        folder = folder.expanduser()
    if any((folder / name).is_file() for name in OF_A_TRAINING):
        raise run_exists(folder)


def refuse_no_adapter(path: str, *, may_be_run: bool) -> None:
    """Refuses a folder without an adapter.

    Args:
        path: The folder.
        may_be_run: Whether it may also be the folder of a run that exported one.

    Raises:
        InputError: If there is none in it.
    """
    inside = ("", "adapter", "adapter_best") if may_be_run else ("",)
    if not any(Path(path, folder, _ADAPTER_CONFIG).is_file() for folder in inside):
        also = ", and is no run with one" if may_be_run else ""
        raise InputError(f"`adapter` {path!r} holds no adapter ({_ADAPTER_CONFIG} is missing){also}.")


def refuse_no_runs(paths: Sequence[str]) -> None:
    """Refuses paths that are no folders.

    Args:
        paths: Of runs.

    Raises:
        InputError: If one of them is none.
    """
    for path in paths:
        if not Path(path).is_dir():
            raise InputError(
                f"`{path}`: expected a run folder, but there is none; `lit-semantic-peft fit --config FILE` makes one"
            )


def _refuse_missing(command: str, settings: Mapping[str, Any]) -> None:
    """Refuses facts, an adapter or a checkpoint that are not there, and bad facts; the parser gets what is no text."""
    facts, adapter, checkpoint = (settings.get(name) for name in ("data.facts", "model.adapter", "ckpt_path"))
    reads_facts = command != "predict" or not any(settings.get(name) for name in ("data.prompts", "chat"))
    if _is_path(facts) and reads_facts:
        from lit_semantic_peft.facts.builtin import BUILTIN
        from lit_semantic_peft.facts.containers import located

        if facts not in BUILTIN:
            _refuse_bad_facts(command, facts, located(facts), settings)
    if _is_path(adapter):
        refuse_no_adapter(adapter, may_be_run=False)
    if _is_path(checkpoint) and checkpoint != "last" and not Path(checkpoint).exists():
        raise InputError(f"`ckpt_path` {checkpoint!r} is no checkpoint file.")


def _refuse_bad_facts(command: str, facts: str, path: Path | None, settings: Mapping[str, Any]) -> None:
    """Reads facts that are text and soon read; the run reads them again."""
    contradictions, split = (settings.get(f"data.{name}") for name in ("contradictions", "dataset_split"))
    if path is None or not path.is_file() or path.suffix not in _TEXT or path.stat().st_size > _SOON_READ:
        return
    if contradictions not in (None, "error", "keep") or split is not None:
        return  # the parser says what is wrong with them
    from lit_semantic_peft.facts import read_facts

    # `score` lists contradictions, whatever is set.
    read_facts(facts, contradictions="keep" if command == "score" else contradictions or "error")


def _is_path(value: Any) -> TypeGuard[str]:
    """Whether a setting is a text that can name a file: not null, and no YAML of another kind."""
    return isinstance(value, str) and value != "null" and value.strip()[:1] not in ("", "{", "[", "'", '"')


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
