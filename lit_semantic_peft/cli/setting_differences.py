"""What runs were told differently, by their `config.yaml`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_semantic_peft.yaml_text import parsed_yaml

_OF_THE_PLACE = ("trainer.default_root_dir", "trainer.logger")
"""Settings by which any runs differ."""
_NOT_SET = "(not set)"


def setting_differences(first: Path, second: Path) -> list[str]:
    """The settings that differ, a line each.

    Args:
        first: A run's configuration.
        second: Another run's.

    Returns:
        `key: value -> value`, by key; empty where a file is missing or cannot be read, or where nothing differs.
    """
    return [f"{key}: {' -> '.join(values)}" for key, values in settings_of_runs([first, second]).items()]


def settings_of_runs(configurations: Sequence[Path]) -> dict[str, list[str]]:
    """The settings in which runs differ, with the value of each run.

    Args:
        configurations: Of at least two runs.

    Returns:
        Values by key, in the order of the keys; empty where a file is missing or cannot be read, or nothing differs.
    """
    told = [dict(_flat(_read(path))) for path in configurations]
    if not all(told):
        return {}
    values = {key: [one.get(key, _NOT_SET) for one in told] for key in sorted({key for one in told for key in one})}
    return {key: of_key for key, of_key in values.items() if len({*of_key}) > 1 and not key.startswith(_OF_THE_PLACE)}


def _read(path: Path) -> Any:
    try:
        return parsed_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError):
        return None


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting by its path; a list is one value."""
    if not isinstance(config, Mapping):
        if prefix:
            yield prefix, yaml.safe_dump(config, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        return
    for name, value in config.items():
        yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
