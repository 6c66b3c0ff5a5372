"""Layers below the lowest adapter: what they make of a fact never changes, so it is computed once and kept."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.llama_like import llama_backbone
from lit_semantic_peft.tokens import Batch

_OPTION = "reuse_frozen_layers"


class FrozenLayers:
    """The input of the lowest layer that is trained, for each fact, computed when first needed and kept.

    Exact: the kept values are those that the layers below give in every step. Each process of a distributed run keeps
    its own. Values stay on the CPU, in memory up to a limit, else in a memory-mapped temporary file.

    Args:
        model: A Llama-like model (`LLAMA_LIKE`) whose adapter leaves the lowest layers alone, for example LoRA with
            `layers_to_transform`.
        num_tokens: Tokens of all facts that will be seen, each fact counted once.
        memory_mb: Largest size in memory, in MB (10⁶ bytes); beyond it the values are on disk.
        folder: Where the temporary file is made; the system's temporary folder where None.

    Raises:
        InputError: If the model is of another kind, or no layer is below everything that is trained.
    """

    def __init__(self, model: PeftModel, num_tokens: int, memory_mb: int = 2048, folder: Path | None = None) -> None:
        self._backbone = llama_backbone(model, _OPTION)
        if getattr(self._backbone.config, "attention_dropout", 0):
            raise InputError(
                f"`{_OPTION}`: the base model has `attention_dropout` {self._backbone.config.attention_dropout}, so "
                "its layers give something else in every step. Set it to 0 in the base model's configuration."
            )
        self.num_layers = _num_frozen(self._backbone)
        layers = list(self._backbone.layers)
        self._lower = nn.ModuleList(layers[: self.num_layers])
        self._upper = nn.ModuleList(layers[self.num_layers :])
        self._num_tokens = num_tokens
        self._memory_bytes = memory_mb * 10**6
        self._folder = folder
        self._store: Tensor | None = None
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._span: dict[int, tuple[int, int]] = {}
        self._end = 0

    @property
    def is_on_disk(self) -> bool:
        """Whether the values are in a file instead of in memory."""
        return self._file is not None

    def hidden(self, batch: Batch) -> Tensor:
        """The input of the lowest trained layer.

        Args:
            batch: The facts; what is not kept yet is computed.

        Returns:
            `(B, T, H)` in the type that the layers below give, 0 on padding.

        Raises:
            ValueError: If a fact comes with another number of tokens than before, or with more than were announced.
        """
        facts = batch.fact_index.tolist()
        missing = list({fact: row for row, fact in enumerate(facts) if fact not in self._span}.values())
        if missing:
            self._compute(batch, missing)
        assert self._store is not None
        lengths = batch.attention_mask.sum(dim=1).tolist()
        for fact, length in zip(facts, lengths, strict=True):
            start, stop = self._span[fact]
            if stop - start != length:
                raise ValueError(f"fact {fact} has {length} tokens and had {stop - start} before")
        rows = torch.cat([torch.arange(*self._span[fact]) for fact in facts])
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
            raise ValueError(f"facts have more than the {self._num_tokens} tokens that were announced")
        self._store[self._end : self._end + len(values)] = values
        for row, length in zip(rows, mask.sum(dim=1).tolist(), strict=True):
            self._span[int(batch.fact_index[row])] = (self._end, self._end + length)
            self._end += length

    def _allocate(self, like: Tensor) -> Tensor:
        shape = (self._num_tokens, like.shape[1])
        num_bytes = shape[0] * shape[1] * like.element_size()
        if num_bytes <= self._memory_bytes:
            return torch.empty(shape, dtype=like.dtype)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.NamedTemporaryFile(prefix="frozen-layers-", dir=self._folder)  # noqa: SIM115
        self._file.truncate(num_bytes)
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
    """How many of the lowest layers are below everything that is trained."""
    trained = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in backbone.layers]
    num_frozen = trained.index(True) if any(trained) else 0
    if num_frozen == 0 or any(parameter.requires_grad for parameter in backbone.embed_tokens.parameters()):
        raise InputError(
            f"`{_OPTION}` needs layers below everything that is trained, but the adapter trains layer 0 or the "
            f"embedding. Let it begin higher, for example `layers_to_transform: {_upper_half(len(trained))}` in "
            f"LoraConfig, or leave `{_OPTION}` out."
        )
    return num_frozen


def _upper_half(num_layers: int) -> str:
    return f"[{num_layers // 2}, ..., {num_layers - 1}]"
