"""Methods of our own under peft's functions: the only place that touches peft's closed list of types."""

from collections.abc import Set
from dataclasses import MISSING, Field, fields
from typing import Any

from aenum import extend_enum
from peft import LoraConfig, PeftType, __version__
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners import LoraModel
from peft.utils import register_peft_method

from lit_semantic_peft.errors import InputError


def add_peft_type(name: str) -> PeftType:
    """Adds a type to `PeftType`, which peft knows by this name from then on; one that is there already is returned.

    A type of its own, and not a subclass under LoRA's: peft reads an adapter's folder by the type that its
    configuration names, so that a process without this package refuses the folder. Under LoRA's name it would drop the
    tensors that LoRA does not have, and give another model with nothing but a warning.

    Args:
        name: In upper case, as `PeftType` has them.

    Raises:
        InputError: If the installed peft keeps its types in another way.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    extend_enum(PeftType, name, name)
    added: PeftType = PeftType[name]
    _require(
        added in list(PeftType) and PeftType(name) is added and added.value == name and {name: 0}.get(added) == 0, name
    )
    return added


def register_method(kind: PeftType, config_class: type[LoraConfig], tuner_class: type[LoraModel]) -> None:
    """Registers a method that consists of LoRA's tensors and further ones whose names begin as LoRA's do.

    Args:
        kind: From `add_peft_type`.
        config_class: Its configuration.
        tuner_class: Its tuner.

    Raises:
        InputError: If the installed peft registers methods in another way.
    """
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(kind) is config_class:
        return
    register_peft_method(
        name=kind.value.lower(), config_cls=config_class, model_cls=tuner_class, prefix=tuner_class.prefix
    )
    expected: dict[str, tuple[dict[PeftType, Any], Any]] = {
        "configuration": (PEFT_TYPE_TO_CONFIG_MAPPING, config_class),
        "tuner": (PEFT_TYPE_TO_TUNER_MAPPING, tuner_class),
        "prefix": (PEFT_TYPE_TO_PREFIX_MAPPING, tuner_class.prefix),
    }
    for table, value in expected.values():
        _require(table.get(kind) == value, kind.value)


_OF_EVERY_METHOD = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"runtime_config"}  # how a model runs, not what it is; from a YAML it comes as no `LoraRuntimeConfig`
)


def refuse_foreign(config: LoraConfig, taken: Set[str], reason: str) -> None:
    """Refuses settings of LoRA that a method built upon it does not have.

    Args:
        config: The method's configuration.
        taken: Settings of LoRA that mean the same there.
        reason: Why the others are refused, worded to follow "a method of its own".

    Raises:
        InputError: Naming the settings that are not at LoRA's default.
    """
    foreign = [one for one in fields(LoraConfig) if one.name not in taken | _OF_EVERY_METHOD]
    if given := [one.name for one in foreign if getattr(config, one.name) != _default(one)]:
        raise InputError(
            f"`peft_config`: {type(config).__name__} has no {', '.join(f'`{name}`' for name in given)}: a method of "
            f"its own {reason}. Leave it out, or use LoraConfig."
        )


def _default(setting: "Field[Any]") -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _require(is_so: bool, name: str) -> None:
    if not is_so:
        raise InputError(
            f"The adapter type {name} cannot be added to peft {__version__}, which keeps its types in another way than "
            "the versions that this package supports (docs/versions.md). Install one of those."
        )
