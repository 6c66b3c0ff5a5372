"""The base model as one value: which it is, and how its weights and tokenizer are loaded."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base_files import (
    DEFAULT_BASE_MODEL,
    BaseModelSource,
    find_base_model,
    quiet_loading,
    reading,
    verify_checksums,
)
from lit_semantic_peft.models.quantized import (
    QuantizedDtype,
    dequantized,
    loading_arguments,
    quantization_of,
    refuse_second_quantization,
    require_library,
    run_exactly,
)

_LIKE_ROBERTA = "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod"
_BEHIND_PADDING = {**dict.fromkeys(_LIKE_ROBERTA.split(), 1), "prophetnet": 2}
"""Entries of the table of positions, by model type, that text does not reach, besides as many as the padding token's
number."""

BaseDtype = Literal["float32", "bfloat16", "float16", "nf4", "int8"]


@dataclass(frozen=True)
class BaseModel:
    """A base model, named once. Nothing is read, downloaded or converted before it is asked for.

    Args:
        name: `smollm2-135m` (needs no network), `gemma-3-270m` (from packages of its own), a Hub name such as
            `Qwen/Qwen2.5-0.5B`, a local folder, or a local GGUF file.
        revision: Branch, tag or commit, for Hub names only.
        dtype: Type of the weights in memory. `nf4` (4 bits) and `int8` quantise the linear layers while they are read,
            the rest is bfloat16 (`models.quantized`). Adapters stay in float32 whatever the base is.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: If `name` is empty, or `dtype` is unknown or needs a library that is not installed.

    Example:
        >>> BaseModel.of("Qwen/Qwen2.5-0.5B").dtype
        'float32'
    """

    name: str = DEFAULT_BASE_MODEL
    revision: str | None = None
    dtype: BaseDtype = "float32"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("`base_model` is empty; expected a Hub name, a local folder or a .gguf file")
        if not isinstance(self.name, str):
            raise InputError(f"`base_model.name`: expected a text, got {self.name!r}")
        if self.dtype not in get_args(BaseDtype):
            written = str(self.dtype).removeprefix("torch.")
            hint = f"; write '{written}'" if written in get_args(BaseDtype) else ""
            raise InputError(
                f"`base_model.dtype` must be one of {', '.join(get_args(BaseDtype))}, got {self.dtype!r}{hint}"
            )
        if self.dtype in get_args(QuantizedDtype):
            require_library(self.dtype)  # type: ignore[arg-type]

    @staticmethod
    def of(model: "BaseModel | str | os.PathLike[str]") -> "BaseModel":
        """A base model from its name or its folder; a `BaseModel` is returned as it is.

        Args:
            model: The name, the path or the base model.
        """
        if isinstance(model, BaseModel):
            return model
        return BaseModel(os.fspath(model) if isinstance(model, os.PathLike) else model)

    @cached_property
    def source(self) -> BaseModelSource:
        """Where its files are and what identifies them; found once, downloaded or converted if needed.

        Raises:
            InputError: If there is no such model, or it cannot be reached.
        """
        found = find_base_model(self.name, self.revision)
        if self.dtype not in get_args(QuantizedDtype):
            return found
        note = f"Trained on base weights quantised to {self.dtype} by bitsandbytes. {found.note}".rstrip()
        return replace(found, note=note, dtype=self.dtype)

    @property
    def quantized_dtype(self) -> str | None:
        """`nf4`, `int8`, or the method by which its files are quantised already; None where nothing is.

        Raises:
            InputError: If `dtype` does not say it, and there is no such model.
        """
        return self.dtype if self.dtype in get_args(QuantizedDtype) else quantization_of(self.source.folder)

    def is_same_as(self, other: "BaseModel") -> bool:
        """Whether both give the same numbers, by whatever name: the same content, type and code.

        Args:
            other: Another base model.

        Raises:
            InputError: If one of them is not found.
        """
        if (self.dtype, self.trust_remote_code) != (other.dtype, other.trust_remote_code):
            return False
        return self.source.fingerprint == other.source.fingerprint

    def load(self) -> PreTrainedModel:
        """Loads the weights on the CPU, frozen, in evaluation mode.

        Raises:
            InputError: If the folder holds no causal language model, or it needs a package that is not installed (a
                quantised one: bitsandbytes, gptqmodel, ...), or a converted file was damaged, or if `dtype` would
                quantise what is quantised.
        """
        folder = self.source.folder
        verify_checksums(folder)
        refuse_second_quantization(folder, self.dtype)
        how: dict[str, Any] = (
            loading_arguments(self.dtype)  # type: ignore[arg-type]
            if self.dtype in get_args(QuantizedDtype)
            else {"dtype": getattr(torch, self.dtype)}
        )
        with reading(f"`base_model`: no causal language model in {folder}"), quiet_loading():
            model: PreTrainedModel
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=self.trust_remote_code, output_loading_info=True, **how
            )
        if loading["missing_keys"]:  # transformers only warns and draws them at random
            raise InputError(
                f"`base_model`: the weights in {folder} are incomplete; missing: "
                f"{', '.join(sorted(loading['missing_keys'])[:5])}"
            )
        model.config.name_or_path = self.source.public_name
        run_exactly(model)
        return model.eval().requires_grad_(False)

    def load_dequantized(self) -> PreTrainedModel:
        """As `load`, with the numbers that quantised weights stand for in float32, so that an adapter can be merged.

        Raises:
            InputError: As `load`.
        """
        model = self.load()
        return dequantized(model) if self.dtype in get_args(QuantizedDtype) else model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer.

        Raises:
            InputError: If the folder has no tokenizer, or one that is not the model's.
        """
        folder = self.source.folder
        with reading(f"`base_model`: no tokenizer in {folder}"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=self.trust_remote_code
            )
        size = self.load_num_tokens()
        if size is not None and tokenizer.vocab_size > size:
            raise InputError(
                f"`base_model`: the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, the model {size:,} "
                "(`vocab_size`). They do not belong together: copy both from one model."
            )
        return tokenizer

    def load_stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, by the generation settings of the model; chat models often have several.

        Raises:
            InputError: If the folder's configuration is not that of a known model.
        """
        path = self.source.folder / GENERATION_CONFIG_NAME
        if not path.is_file():  # like transformers, make the settings from the configuration
            return stop_ids(GenerationConfig.from_model_config(self._load_config()))
        with reading(f"`base_model`: {path} cannot be read"):
            return stop_ids(GenerationConfig.from_pretrained(path.parent))

    def load_num_positions(self) -> int | None:
        """As `num_positions`, before the model is loaded.

        Raises:
            InputError: If the folder's configuration is not that of a known model.
        """
        return num_positions(self._load_config())

    def load_num_tokens(self) -> int | None:
        """As `num_tokens`, before the model is loaded.

        Raises:
            InputError: If the folder's configuration is not that of a known model.
        """
        return num_tokens(self._load_config())

    def count_parameters(self) -> int:
        """Number of the model's parameters, without loading them; tied ones count once.

        Raises:
            InputError: If the folder's configuration is not that of a known model.
        """
        config = self._load_config()
        with reading(f"`base_model`: no causal language model in {self.name}"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
        return sum(parameter.numel() for parameter in model.parameters())

    def _load_config(self) -> PreTrainedConfig:
        folder = self.source.folder
        with reading(f"`base_model`: no causal language model in {folder}, by its config.json"):
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        return config


def stop_ids(settings: GenerationConfig) -> tuple[int, ...]:
    """Token ids at which an answer ends.

    Args:
        settings: The model's settings for generation.

    Raises:
        InputError: If they hold something else than numbers.
    """
    found = settings.eos_token_id
    ids = tuple(found) if isinstance(found, list) else () if found is None else (found,)
    if not all(isinstance(one, int) for one in ids):
        raise InputError(f"`base_model`: `eos_token_id` of its settings for generation must be numbers, got {found!r}.")
    return ids


def num_tokens(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has embeddings for; None where its configuration does not say it.

    Args:
        config: The model's configuration.
    """
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) else None


def num_positions(config: PreTrainedConfig) -> int | None:
    """Longest text of a model, in tokens; None where its configuration names no limit.

    Args:
        config: The model's configuration.
    """
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    if text.model_type in _BEHIND_PADDING:
        found -= (text.pad_token_id or 0) + _BEHIND_PADDING[text.model_type]
    return max(1, found)
