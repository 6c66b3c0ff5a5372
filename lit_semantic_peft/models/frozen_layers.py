"""Layers below the lowest adapter: their output for a fact never changes, so it is computed once and reused."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.cache import cache_folder
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.disk_space import reserve
from lit_semantic_peft.models.fast_ways import fast_ways
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of
from lit_semantic_peft.tokens import Batch

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures (`config.model_type`) whose backbone is an embedding, layers of one kind, and a norm."""


def frozen_layers_obstacle(model: PeftModel) -> str:
    """Why `FrozenLayers` cannot be used with a model: a clause for a message, or "" if it can.

    Args:
        model: A `peft` model around a causal language model.
    """
    base = model.get_base_model()
    config = base.config
    if reason := traits_of(model).cannot.get("reuse_frozen_layers"):
        return f"an adapter of type {peft_type_name(model)} {reason}"
    if config.model_type not in LLAMA_LIKE:
        return f"the model is of type {config.model_type!r}, not one of {', '.join(LLAMA_LIKE)}"
    kinds = set(getattr(config, "layer_types", None) or [])
    if len(kinds) > 1:
        return f"its layers are of different types ({', '.join(sorted(kinds))})"
    if config.attention_dropout:
        return (
            f"`attention_dropout` of the base model is {config.attention_dropout}, so the outputs of its layers change "
            "in every step"
        )
    if _num_frozen(base.model) == 0:
        half, num_layers = len(base.model.layers) // 2, len(base.model.layers)
        return (
            "layer 0 or the embedding is trained. Let the adapter begin higher, for example with "
            f"`layers_to_transform: [{half}, ..., {num_layers - 1}]` in LoraConfig"
        )
    if not fast_ways(model).reuse_frozen_layers:
        return "the self-check found that the logits on reused outputs are not those of the plain forward pass"
    return ""


class FrozenLayers:
    """The input of the lowest trained layer for each text, computed when first needed and then reused.

    Exact: the stored values are those that the layers below compute in every step. Each process of a distributed run
    stores its own. Values are on the CPU: in memory up to a limit, else in a memory-mapped temporary file.

    Args:
        model: A model with an adapter that does not change the lowest layers, for example LoRA with
            `layers_to_transform`.
        num_tokens: Tokens of all texts that will be used (`Batch.text_index`), each text counted once.
        memory_mb: Largest size in memory, in MB (10⁶ bytes). Larger values are stored on disk.
        folder: Folder of the temporary file. None: the package's cache, as the system's temporary folder is often in
            memory.

    Raises:
        InputError: If the model does not allow it (`frozen_layers_obstacle`).
    """

    def __init__(self, model: PeftModel, num_tokens: int, memory_mb: int = 2048, folder: Path | None = None) -> None:
        obstacle = frozen_layers_obstacle(model)
        if obstacle:
            raise InputError(f"`reuse_frozen_layers` cannot be used: {obstacle}.")
        base = model.get_base_model()
        self._backbone: Any = base.model
        self.num_layers = _num_frozen(self._backbone)
        layers = list(self._backbone.layers)
        self._lower = nn.ModuleList(layers[: self.num_layers])
        self._upper = nn.ModuleList(layers[self.num_layers :])
        self._num_tokens = num_tokens
        self._memory_bytes = memory_mb * 10**6
        self._folder = folder or cache_folder()
        self._store: Tensor | None = None
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._span: dict[int, tuple[int, int]] = {}
        self._end = 0

    @property
    def fits_in_memory(self) -> bool:
        """Whether the values of all texts are within the memory limit."""
        embedding = self._backbone.embed_tokens.weight
        return bool(self._num_tokens * embedding.shape[1] * embedding.element_size() <= self._memory_bytes)

    def hidden(self, batch: Batch) -> Tensor:
        """The input of the lowest trained layer.

        Args:
            batch: The facts. Values that are not stored yet are computed.

        Returns:
            `(B, T, H)` in the dtype of the layers below, 0 on padding.

        Raises:
            DiskSpaceError: If the values are stored on disk and do not fit there.
            ValueError: If a text has another number of tokens than before, or the texts have more than `num_tokens`.
        """
        texts = batch.text_index.tolist()
        missing = list({text: row for row, text in enumerate(texts) if text not in self._span}.values())
        if missing:
            self._compute(batch, missing)
        assert self._store is not None
        lengths = batch.attention_mask.sum(dim=1).tolist()
        for text, length in zip(texts, lengths, strict=True):
            start, stop = self._span[text]
            if stop - start != length:
                raise ValueError(f"text {text} has {length} tokens and had {stop - start} before")
        rows = torch.cat([torch.arange(*self._span[text]) for text in texts])
        mask = batch.attention_mask.bool()
        hidden = torch.zeros(*mask.shape, self._store.shape[1], dtype=self._store.dtype, device=mask.device)
        hidden[mask] = self._store[rows].to(mask.device)
        return hidden

    @contextmanager
    def upper_layers_only(self) -> Iterator[None]:
        """Within the block the model's forward runs only the layers from the lowest trained one on."""
        with self._only(self._upper):
            yield

    @torch.no_grad()
    def _compute(self, batch: Batch, rows: list[int]) -> None:
        mask = batch.attention_mask[rows]
        seen: list[Tensor] = []
        hook = self._backbone.norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        try:
            with self._only(self._lower):
                self._backbone(input_ids=batch.input_ids[rows], attention_mask=mask, use_cache=False)
        finally:
            hook.remove()
        values = seen[0][mask.bool()].cpu()
        if self._store is None:
            self._store = self._allocate(values)
        if self._end + len(values) > len(self._store):
            raise ValueError(f"texts have more than `num_tokens` = {self._num_tokens} tokens")
        self._store[self._end : self._end + len(values)] = values
        for row, length in zip(rows, mask.sum(dim=1).tolist(), strict=True):
            self._span[int(batch.text_index[row])] = (self._end, self._end + length)
            self._end += length

    def _allocate(self, like: Tensor) -> Tensor:
        shape = (self._num_tokens, like.shape[1])
        if self.fits_in_memory:
            return torch.empty(shape, dtype=like.dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.NamedTemporaryFile(prefix=".frozen-layers-", dir=self._folder)  # noqa: SIM115
        reserve(
            self._file,
            shape[0] * shape[1] * like.element_size(),
            "The outputs of the frozen layers are stored there, one vector for each token of the facts. Make room, set "
            "`LIT_SEMANTIC_PEFT_CACHE` to a larger disk, or use `--model.reuse_frozen_layers=false`.",
        )
        return torch.from_file(self._file.name, shared=True, size=shape[0] * shape[1], dtype=like.dtype).view(shape)

    @contextmanager
    def _only(self, layers: nn.ModuleList) -> Iterator[None]:
        whole = self._backbone.layers
        self._backbone.layers = layers
        try:
            yield
        finally:
            self._backbone.layers = whole


def _num_frozen(backbone: Any) -> int:
    """Number of layers below the lowest trained parameter."""
    if any(parameter.requires_grad for parameter in backbone.embed_tokens.parameters()):
        return 0
    trained = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in backbone.layers]
    return trained.index(True) if any(trained) else 0
