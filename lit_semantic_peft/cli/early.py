"""What can be refused before anything heavy is imported: a configuration that is not there, a run folder that is."""

from collections.abc import Sequence
from pathlib import Path

from lit_semantic_peft.errors import InputError

DEFAULT_RUN = "runs/default"
"""The run folder where none is named."""

_CONFIGURATIONS = {".yaml", ".yml", ".json"}
_NO_RUN = ("--help", "-h", "--print_config", "--ckpt_path", "--trainer.fast_dev_run", "--trainer")
"""Options with which a command runs nothing, goes on with a run, or sets the folder in another way."""

OF_A_TRAINING = ("manifest.json", "config.yaml", "summary.json")
"""Files of a run folder that show that a training was in it, as `RunPaths` names them."""


def refuse_early(arguments: Sequence[str]) -> None:
    """Refuses what a look at the options and at the disk shows; all else is found when the options are parsed.

    Args:
        arguments: The command and its options.

    Raises:
        InputError: If a configuration file does not exist, or the run folder of a new training has a run in it.
    """
    options = _options(arguments[1:])
    if "--help" in options or "-h" in options:
        return
    for name in ("--config", "-c"):
        for value in options.get(name, ()):
            if Path(value).suffix in _CONFIGURATIONS and "\n" not in value and not Path(value).exists():
                raise InputError(f"`--config`: {value} does not exist in {Path.cwd()}.")
    if arguments[0] != "fit" or any(name.partition("=")[0] in _NO_RUN for name in options):
        return
    if "--config" in options or "-c" in options:
        return  # it may name a folder, or be wrong itself
    folders = options.get("--trainer.default_root_dir", ())
    folder = Path(folders[-1] if folders else DEFAULT_RUN)
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


def _options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The values that were given for each option, in order; none for a flag."""
    found: dict[str, list[str]] = {}
    for at, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.partition("=")
        values = found.setdefault(name, [])
        following = arguments[at + 1 : at + 2]
        if equals:
            values.append(value)
        elif following and not following[0].startswith("-"):
            values.append(following[0])
    return found
