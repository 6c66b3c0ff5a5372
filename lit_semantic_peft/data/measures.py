"""What a distance's or a feature's numbers depend on, for cache keys."""

import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_semantic_peft.files import content_key
from lit_semantic_peft.models.base_files import folder_fingerprint
from lit_semantic_peft.semantics import Distance, Feature


def identity(measure: Distance | Feature) -> dict[str, Any]:
    """Class, version and settings, the content of a model's folder among them, and the source of a user's own class.

    Args:
        measure: Its settings are plain data.

    Returns:
        Plain data that differs where the measured numbers may.
    """
    kind = type(measure)
    found: dict[str, Any] = {
        "name": measure.name if isinstance(measure, Distance) else kind.__name__,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "version": measure.version,
        "settings": vars(measure),
    }
    found["content"] = {
        setting: folder_fingerprint(Path(value))
        for setting, value in vars(measure).items()
        if isinstance(value, str) and value and Path(value, "config.json").is_file()
    }
    if kind.__module__.split(".")[0] != __package__.split(".")[0]:  # our own classes have a version instead
        with suppress(OSError, TypeError):  # typed into a shell: there is no source file
            found["source"] = content_key(inspect.getsource(kind))
    return found
