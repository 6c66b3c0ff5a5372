"""Where a base model's files are: from a name to a local folder, with or without a hub.

`smollm2-135m` and `gemma-3-270m` are real models that need no hub: PyPI packages carry them as GGUF files. A GGUF file
is dequantised once into safetensors in the user's cache and loaded from there.
"""

import contextlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lit_semantic_peft.cache import cache_folder
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import content_key, file_sha256, share, write_json
from lit_semantic_peft.models.packaged import PACKAGED_MODELS, PackagedModel

logger = logging.getLogger(__name__)

DEFAULT_BASE_MODEL = "smollm2-135m"

MOST_PARTS = 10_000
"""Layers of a model, and experts of a layer."""

_CONVERSION_VERSION = 1
_CHECKSUMS = "checksums.json"
# Everything that changes a number: weights, configuration, tokenizer, chat template, code.
_FINGERPRINTED = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py"}
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True, slots=True)
class BaseModelSource:
    """Where a base model's files are and what identifies them.

    Attributes:
        name: The name as the user gave it.
        folder: Local folder with configuration, tokenizer and weights.
        public_name: The name under which somebody else can load it; written into exported adapters.
        fingerprint: Content key of the weights, configuration and tokenizer; part of every cache key.
        note: What a reader of the model card must know ("" if nothing).
        revision: Commit on the Hub; None where the files are not from there.
        dtype: What the weights are quantised to when they are loaded; None where they are not.
    """

    name: str
    folder: Path
    public_name: str
    fingerprint: str
    note: str = ""
    revision: str | None = None
    dtype: str | None = None


def find_base_model(name: str, revision: str | None = None) -> BaseModelSource:
    """Finds a base model's files, downloading or converting them when needed.

    Args:
        name: A name of `PACKAGED_MODELS` (from the installed packages; `smollm2-135m` else from the Hub), a local
            folder, a local GGUF file, or a Hub name such as `Qwen/Qwen2.5-0.5B`.
        revision: Branch, tag or commit, for Hub names only.

    Returns:
        The files and their fingerprint.

    Raises:
        InputError: If there is no such model, or it cannot be reached.
    """
    path = Path(name).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError:  # longer than any file's name
        is_file = is_folder = False
    if is_file:
        if path.suffix != ".gguf":
            raise InputError(f"`base_model` {name!r} is a file but not a GGUF file. Give its folder, or a .gguf file.")
        return _from_gguf(name, path)
    if is_folder:
        return _from_folder(name, path)
    packaged = PACKAGED_MODELS.get(name)
    if packaged is None:
        return _from_hub(name, revision)
    if packaged.is_on_hub and not packaged.is_installed:
        return _from_hub(packaged.public_name, revision)
    return _from_package(name, packaged)


def _from_folder(name: str, folder: Path) -> BaseModelSource:
    if not (folder / "config.json").is_file():
        raise InputError(f"`base_model` {str(folder)!r} is a folder without config.json, so it holds no model.")
    _require_buildable(folder / "config.json")
    _require_own_weights(folder)
    return BaseModelSource(name, folder.resolve(), name, folder_fingerprint(folder))


def _require_buildable(path: Path) -> None:
    """Refuses a configuration of so many layers or experts that making them would never end.

    What else is wrong with it, transformers says.
    """
    try:
        with path.open(encoding="utf-8") as file:
            found = list(_numbers_of_parts(json.load(file)))
    except (OSError, ValueError, RecursionError):
        return
    for name, number in found:
        if number > MOST_PARTS:
            raise InputError(f"`base_model`: {path}: `{name}` is {number:,}, more than {MOST_PARTS:,}.")


def _require_own_weights(folder: Path) -> None:
    """Refuses an index that leads to weights elsewhere: their changes would not be seen, and old scores be reused."""
    for path in sorted(folder.glob("*.index.json")):
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            continue  # transformers says what is wrong with it
        for name in names:
            if isinstance(name, str) and Path(name).name != name:
                raise InputError(
                    f"`base_model`: {path}: `weight_map` names {name!r}, which lies outside this folder. Copy the "
                    "weights into it."
                )


def _numbers_of_parts(settings: Any) -> Iterator[tuple[str, int]]:
    """The settings that count layers or experts, also those of a part of the model."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if isinstance(value, int) and re.search("layers?$|experts$", name):
            yield name, value
        yield from _numbers_of_parts(value)


def folder_fingerprint(folder: Path) -> str:
    """Content key of the weights, configuration and tokenizer in a folder.

    Args:
        folder: As `save_pretrained` writes it.

    Raises:
        InputError: If one of them is no file.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in _FINGERPRINTED and not path.is_dir())
    if others := [path for path in files if not path.is_file()]:
        raise InputError(f"`base_model`: {others[0]} is a broken link, a pipe or a device. Copy the model again.")
    return content_key([[path.name, _digest(path)] for path in files])


def _from_hub(name: str, revision: str | None) -> BaseModelSource:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the Hub client raises a dozen unrelated types; each means: not available
        raise InputError(
            f"`base_model` {name!r} is no local folder, no GGUF file and could not be loaded from the Hub "
            f"({type(error).__name__}: {first_line(error)}). Without network use `{DEFAULT_BASE_MODEL}` "
            f"(`pip install {PACKAGED_MODELS[DEFAULT_BASE_MODEL].install}`) or a local folder."
        ) from error
    commit = folder.name
    return BaseModelSource(name, folder, name, content_key(name, commit), revision=commit)


def _from_gguf(name: str, path: Path) -> BaseModelSource:
    digest = _digest(path)
    folder = _conversion_folder(path.name, digest)
    if not (folder / _CHECKSUMS).is_file():
        _convert_gguf(path, folder)
    return _converted(name, folder, digest, path.name, public_name=path.name)


def _from_package(name: str, model: PackagedModel) -> BaseModelSource:
    folder = _conversion_folder(model.file, model.sha256)
    if not (folder / _CHECKSUMS).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with model.gguf_file(folder.parent) as path:
            _convert_gguf(path, folder)
    return _converted(name, folder, model.sha256, model.file, model.public_name, model.terms)


def _conversion_folder(file: str, digest: str) -> Path:
    return cache_folder() / "models" / f"{Path(file).stem}-{digest[:16]}-v{_CONVERSION_VERSION}"


def _converted(name: str, folder: Path, digest: str, file: str, public_name: str, terms: str = "") -> BaseModelSource:
    note = f"Trained on the dequantised weights of {file}, not on the original full-precision weights. {terms}".rstrip()
    return BaseModelSource(name, folder, public_name, content_key(digest, _CONVERSION_VERSION), note)


def _convert_gguf(path: Path, folder: Path) -> None:
    """Dequantises a GGUF file into a folder of safetensors that appears whole or not at all.

    The random generator stays as it was, so that a first run draws the same adapter as later ones.
    """
    logger.info("Converting %s to safetensors in %s (once, a minute for 270M parameters)", path.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        with reading(f"`base_model` {str(path)!r} cannot be converted"):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            quantized = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        # `save_pretrained` refuses a model that is marked as quantised, so the weights move into a fresh one.
        config = quantized.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        with quiet_loading():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        write_json(
            temporary / _CHECKSUMS,
            {file.name: _digest(file) for file in sorted(temporary.iterdir()) if file.suffix == ".safetensors"},
        )
        if folder.exists() and not (folder / _CHECKSUMS).is_file():
            shutil.rmtree(folder)  # a leftover
        share(temporary)
        # Another process may have been faster; its folder is as good.
        with contextlib.suppress(OSError):
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify_checksums(folder: Path) -> None:
    """Refuses a converted model whose files are not those that were written.

    Args:
        folder: Of the model; one that was not converted here is not looked at.

    Raises:
        InputError: If a file is damaged.
    """
    manifest = folder / _CHECKSUMS
    if not manifest.is_file():
        return
    try:
        expected: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{manifest} is damaged. Delete {folder}; it is made anew.") from error
    for name, digest in expected.items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise InputError(f"{folder / name} is damaged (checksum differs). Delete {folder}; it is made anew.")


def _digest(path: Path) -> str:
    """SHA-256 of a file, which is read once in a process: weights are large, and several parts ask for the model."""
    found = path.stat()
    return _digest_of(path.resolve(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hides the sub-second progress bars of loading; conversion keeps its own, which takes longer."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever a library raises while it reads files of a model into an error of input.

    A file that is cut off, empty, or of another form than its name says ends in a dozen unrelated types.

    Args:
        what: What cannot be done, for the message.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{what}: it needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:
        name = type(error).__name__
        kind = f"{name}: " if name[0].isupper() and not isinstance(error, OSError | ValueError) else ""
        raise InputError(f"{what}: {kind}{first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of a library's error message that says more than that something follows.

    Args:
        error: Any exception.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), lines[0] if lines else type(error).__name__)
