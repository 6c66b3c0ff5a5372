"""An adapter's folder as PEFT writes it: read whole or refused."""

import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from peft import PeftConfig, load_peft_weights
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from lit_semantic_peft.adapters.anchors import ANCHORS_FILE, TOKENIZER_FILE, Anchors
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base_files import first_line
from lit_semantic_peft.models.peft_settings import setting_without_effect
from lit_semantic_peft.models.peft_traits import traits_of

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_WEIGHT_FILES = (WEIGHTS_FILE, "adapter_model.bin")
# Written by PEFT's own base class, or as a sub-configuration that only a run knows.
_NOT_SETTINGS = {"runtime_config"}


@dataclass(frozen=True)
class SavedAdapter:
    """What a folder holds.

    Attributes:
        folder: Its path.
        config: The configuration, for inference.
        tensors: The tensors under PEFT's names, on the CPU.
    """

    folder: Path
    config: PeftConfig
    tensors: dict[str, Tensor]


def read_adapter(folder: str | Path, *, safetensors_only: bool = False) -> SavedAdapter:
    """Reads an adapter's folder.

    Args:
        folder: As `export_adapter` or PEFT's `save_pretrained` writes it.
        safetensors_only: Whether weights in PyTorch's own format, a pickle, are refused instead of read.

    Raises:
        InputError: If a file is missing or damaged, if the configuration is of an unknown type, has settings that the
            installed peft does not know, numbers that are not finite, or a scale of 0.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"`adapter` {str(folder)!r} holds no adapter ({CONFIG_FILE} is missing).")
    if safetensors_only and not (folder / WEIGHTS_FILE).is_file():
        raise InputError(
            f"`adapter` {str(folder)!r}: {WEIGHTS_FILE} is missing, and no other format is read, since a pickle can "
            "run code. Ask for the adapter as safetensors."
        )
    config = _config(folder)
    if traits_of(config).routes:
        config.anchors = Anchors.read(folder / ANCHORS_FILE, folder / TOKENIZER_FILE)
    return SavedAdapter(folder, config, _tensors(folder))


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object with finite numbers.

    Args:
        path: The file.

    Raises:
        InputError: If it is anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, not a JSON object.")
    return value


def _config(folder: Path) -> PeftConfig:
    path = folder / CONFIG_FILE
    settings = read_json_object(path)
    kinds = {str(kind.value): of_kind for kind, of_kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path}: `peft_type` must be one of {', '.join(sorted(kinds))}, got {kind!r}")
    known = inspect.signature(kinds[kind]).parameters
    # A newer peft may have written a setting that is off.
    unknown = sorted(name for name, value in settings.items() if name not in {*known, *_NOT_SETTINGS} and value)
    if unknown:
        version = settings.get("peft_version") or "another version"
        raise InputError(
            f"{path}: the installed peft does not know {', '.join(f'`{name}`' for name in unknown)} of {kind}. The "
            f"adapter was written by peft {version}: install that."
        )
    try:
        config: PeftConfig = kinds[kind](**{name: value for name, value in settings.items() if name in known})
    except Exception as error:  # each configuration has its own types for what it refuses
        raise InputError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
    if nothing := setting_without_effect(config):
        raise InputError(f"{path}: `{nothing}` is 0, so that the adapter changes nothing.")
    config.inference_mode = True
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    found = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise InputError(f"`adapter` {str(folder)!r} has no weights ({WEIGHTS_FILE} is missing).")
    try:
        tensors = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # safetensors, zip and pickle each have their own types
        raise InputError(f"{found} cannot be read: {first_line(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(one, Tensor) for one in tensors.values()):
        raise InputError(f"{found} holds something else than tensors by name.")
    return tensors


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value
