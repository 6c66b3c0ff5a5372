"""A configuration as YAML, refused where a parser would take it for something else than it says."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.yaml_text import NotYaml, parsed_yaml

_SUFFIXES = {".yaml", ".yml", ".json"}
_OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}
_STARTS = ("{", "[")  # of a value on the command line that is no single text or number


def is_file(value: str) -> bool:
    """Whether `--config` names a file, and is not the configuration itself.

    Args:
        value: What follows the option.
    """
    return Path(value).suffix in _SUFFIXES and "\n" not in value


def read_configuration(value: str, sections: Collection[str]) -> Any:
    """What a configuration says; None where it cannot be read, which the parser explains.

    Args:
        value: What follows `--config`: a file, or YAML.
        sections: Names under which settings stand, such as `data.encoding`.

    Raises:
        InputError: If the file is not there or no file; if a key stands twice; if a value contains itself, or is more
            than memory holds; if a section holds no settings, or a class is not given by its name.
    """
    place = "`--config`"
    if is_file(value):
        path, place = Path(value), value
        if not path.exists():
            raise InputError(f"`--config`: {value} does not exist in {Path.cwd()}.")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"`--config`: {value} is no file but a pipe or a device. Write the settings into a file.")
        try:
            value = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
        if all(line.lstrip().startswith("#") or not line.strip() for line in value.splitlines()):
            raise InputError(f"`--config`: {place} holds no settings. Write them, or leave the option out.")
    found = _parsed(value, place)
    if isinstance(found, Mapping):
        for name, one in found.items():
            _require_value(str(name), one, sections, f"{place}: ")
    return found


def refuse_option(name: str, value: str, sections: Collection[str]) -> None:
    """Refuses the value of an option as that of a key of a file.

    Args:
        name: Of the option, without dashes.
        value: As it was typed.
        sections: As of `read_configuration`.

    Raises:
        InputError: As `read_configuration`.
    """
    if name in sections or value.lstrip().startswith(_STARTS):
        with suppress(NotYaml):  # a name, or what the parser explains
            _require_value(name.removesuffix("+"), parsed_yaml(value, f"`--{name}`"), sections, "")


def _parsed(text: str, place: str) -> Any:
    """The YAML's value; None where it cannot be parsed."""
    try:
        return parsed_yaml(text, place)
    except NotYaml:
        return None


def _require_value(key: str, value: Any, sections: Collection[str], place: str) -> None:
    """Refuses the value of a key, or one below it."""
    if key in sections and not isinstance(value, Mapping | str):
        got = "nothing" if value is None else f"{value!r}"
        raise InputError(
            f"{place}`{key}` is a section: expected settings below it, got {got}. Write them, or leave it out."
        )
    if isinstance(value, list):
        for number, one in enumerate(value):
            _require_value(f"{key}[{number}]", one, sections, place)
    if not isinstance(value, Mapping):
        return
    if "class_path" in value:
        _require_class(key, value, place)
    for name, one in value.items():
        _require_value(f"{key}.{name}", one, sections, place)


def _require_class(key: str, value: Mapping[Any, Any], place: str) -> None:
    name, settings = value["class_path"], value.get("init_args")
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}`{key}.class_path`: expected the name of a class, got {name!r}.")
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"{place}`{key}.init_args`: expected settings of {name} by their names, got {settings!r}.")
    if others := [f"`{one}`" for one in value if one not in _OF_A_CLASS]:
        raise InputError(f"{place}`{key}`: {', '.join(others)} stands beside `class_path`; put it below `init_args`.")
