"""A run's settings that people compare runs by, as flat names: columns of a dashboard's table."""

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig
from torch.optim import Optimizer

_PATHS = {
    "base_model": ("model", "base_model", "name"),
    "dtype": ("model", "base_model", "dtype"),
    "schedule": ("model", "schedule"),
    "facts": ("data", "facts"),
    "num_facts": ("data", "num_facts"),
    "micro_batch_size": ("data", "batches", "micro_batch_size"),
    "max_steps": ("trainer", "max_steps"),
    "max_epochs": ("trainer", "max_epochs"),
    "precision": ("trainer", "precision"),
    "recipe": ("recipe",),
    "refine": ("refine",),
    "extrapolate": ("extrapolate",),
    "gate": ("model", "gate", "init_args", "match"),
    "seed": ("seed_everything",),
}
_CLASSES = {
    "filters": ("data", "selection", "filters"),
    "distance": ("data", "selection", "distance"),
    "retain": ("model", "retain"),
    "forms": ("data", "forms", "sources"),
}
"""Settings that are classes, of which the name is shown."""


def short_settings(config: Mapping[str, Any], optimizer: Optimizer, peft_config: PeftConfig) -> dict[str, Any]:
    """The settings that runs are compared by.

    Args:
        config: A run's configuration, as its YAML file holds it.
        optimizer: Of the training; the configuration may leave it to the package.
        peft_config: Of the adapter; as the optimizer.

    Returns:
        Numbers and texts by name; what is not set, or is None, is left out.
    """
    plain = {name: _at(config, path) for name, path in _PATHS.items()}
    classes = {name: _class_names(_at(config, path)) for name, path in _CLASSES.items()}
    group = optimizer.param_groups[0]
    chosen = {
        "optimizer": type(optimizer).__name__,
        "lr": group.get("initial_lr", group["lr"]),
        "peft": type(peft_config).__name__,
        "r": getattr(peft_config, "r", None),
        "lora_alpha": getattr(peft_config, "lora_alpha", None),
    }
    return {name: value for name, value in (chosen | plain | classes).items() if value is not None}


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _class_names(value: Any) -> str | None:
    """The names of one class or of several."""
    if isinstance(value, Mapping):
        return str(value["class_path"]).rpartition(".")[2] if "class_path" in value else None
    if isinstance(value, list):
        return ", ".join(filter(None, map(_class_names, value))) or None
    return None
