"""An adapter that acts on some rows of a batch only: those whose prompts name what was taught."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lit_semantic_peft.adapters import SubjectTable
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.attach import load_adapter
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.models.export import GATE_FILE
from lit_semantic_peft.models.peft_traits import traits_of
from lit_semantic_peft.models.saved_adapter import read_json_object

_OF_PEFT_ALONE = frozenset({"adapter_names", "alora_offsets"})  # arguments of adapted layers that base layers lack


def read_gate(folder: str | Path) -> SubjectTable | None:
    """The gate of an exported adapter; None where it has none.

    Args:
        folder: The adapter's folder.

    Raises:
        InputError: If the table is damaged.
    """
    path = Path(folder) / GATE_FILE
    return SubjectTable.from_json(read_json_object(path), str(path)) if path.is_file() else None


def mixes_rows(model: PeftModel) -> bool:
    """Whether some rows of one pass can go through the adapter and others not; else a batch is run twice.

    Args:
        model: A model with an adapter.
    """
    return "mix_rows" not in traits_of(model).cannot


@contextmanager
def on_rows(model: PeftModel, rows: Sequence[bool]) -> Iterator[None]:
    """Within the block the adapter acts on the chosen rows of every batch; the others are those of the base model.

    Each adapted layer takes, for the other rows, the output of the layer that it adapts, which is run over the whole
    batch: what it gives there is the base model's to the last bit, in the same batch, padding and dtype. A batch with
    both kinds costs the base's share of the adapted layers twice; one of a single kind costs nothing more.

    Args:
        model: A model with an adapter that `mixes_rows`.
        rows: Which rows the adapter acts on, one flag per row. In a batch of k rows for each of these, as `generate`
            makes for beams and several answers, each flag holds for k rows in a row.

    Raises:
        InputError: If a layer gets something else than one row of tokens for each flag, as experts do that are chosen
            token by token.
    """
    chosen = torch.tensor(list(rows), dtype=torch.bool)
    if chosen.all():
        yield
        return
    if not chosen.any():
        with model.disable_adapter():
            yield
        return
    handles = [
        layer.register_forward_hook(_choose(chosen, base), with_kwargs=True) for layer, base in _adapted_layers(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapted_layers(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The outermost adapted layers, each with the layer that it adapts."""
    for child in model.children():
        if isinstance(child, AuxiliaryTrainingWrapper):
            yield child, child.original_module
        elif isinstance(child, BaseTunerLayer) and isinstance(child, nn.Module):
            yield child, child.get_base_layer()
        else:
            yield from _adapted_layers(child)


def _choose(chosen: Tensor, base: nn.Module) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() < 3 or len(output) % len(chosen):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"The gate chooses rows, and a layer of type {type(layer).__name__} gives {shape} for "
                f"{len(chosen)} rows. Run prompts that name what was taught apart from those that do not."
            )
        given = {name: value for name, value in keywords.items() if name not in _OF_PEFT_ALONE}
        flags = chosen.to(output.device).repeat_interleave(len(output) // len(chosen))
        return torch.where(flags.view(-1, *[1] * (output.dim() - 1)), output, base(*arguments, **given))

    return hook


class GatedModel(nn.Module):
    """A model whose adapter acts on the rows that name what was taught, found by their text; for inference.

    `forward` looks at all tokens of a row. `generate` looks at the prompt, and keeps to what it found for the whole
    answer. Within `for_prompts` nothing is looked at but the texts given there.

    Args:
        model: The model with its adapter; put into evaluation mode.
        table: The names that open the gate.
        tokenizer: The base model's.

    Attributes:
        model: The model with its adapter, without the gate.
        table: The names that open the gate.
        tokenizer: The base model's.
    """

    def __init__(self, model: PeftModel, table: SubjectTable, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = model.eval()
        self.table = table
        self.tokenizer = tokenizer
        self._rows: list[bool] | None = None

    def opens(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt names what was taught.

        Args:
            prompts: The texts.
        """
        return [self.table.opens(prompt) for prompt in prompts]

    @contextmanager
    def for_prompts(self, prompts: Sequence[str]) -> Iterator[None]:
        """Within the block the rows of every batch are those of these prompts, whatever tokens are passed.

        For passes that continue a cache, whose tokens are no longer those of the prompt.

        Args:
            prompts: A text per row.
        """
        before, self._rows = self._rows, self.opens(prompts)
        try:
            yield
        finally:
            self._rows = before

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: Any) -> Any:
        """The output of the base model, and of the adapter for the rows that open the gate.

        Args:
            input_ids: int64 `(B, T)`.
            attention_mask: int64 `(B, T)`, 0 on padding.
            settings: Of the model's own `forward`.

        Raises:
            InputError: If the batch has rows of both kinds, the adapter cannot mix them, and a cache is asked for.
        """
        rows = self._rows_of(input_ids, attention_mask)
        if not self._runs_twice(rows):
            with on_rows(self.model, rows):
                return self.model(input_ids=input_ids, attention_mask=attention_mask, **settings)
        if settings.get("use_cache"):
            raise InputError(
                "The gate runs this adapter twice where a batch has rows of both kinds, and has no cache that holds "
                "both. Use `generate`, or batches of one kind."
            )
        call = {"input_ids": input_ids, "attention_mask": attention_mask, **settings, "use_cache": False}
        taught, base = self.model(**call), self._without_adapter(lambda: self.model(**call))
        flags = torch.tensor(rows, device=base.logits.device)[:, None, None]
        own_tokens = taught.logits[:, -base.logits.shape[1] :]  # virtual tokens stand before them
        return replace(base, logits=torch.where(flags, own_tokens, base.logits), loss=None)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: Any) -> Tensor:
        """Continues prompts, each with the adapter or without, as its prompt says.

        Args:
            input_ids: int64 `(B, T)`, padded on the left.
            attention_mask: int64 `(B, T)`, 0 on padding.
            settings: Of `generate` of transformers; the output is that of its plain form, token ids.

        Returns:
            int64 `(B × answers, T + longest answer)`, as `generate` gives them.
        """
        rows = self._rows_of(input_ids, attention_mask)
        call = {"input_ids": input_ids, "attention_mask": attention_mask, **settings}
        if not self._runs_twice(rows):
            with on_rows(self.model, rows):
                mixed: Tensor = self.model.generate(**call)
            return mixed
        taught, base = self.model.generate(**call), self._without_adapter(lambda: self.model.generate(**call))
        chosen = torch.tensor(rows, device=taught.device).repeat_interleave(len(taught) // len(rows))
        longest = max(taught.shape[1], base.shape[1])
        pad = self.tokenizer.pad_token_id or 0
        taught, base = (nn.functional.pad(one, (0, longest - one.shape[1]), value=pad) for one in (taught, base))
        return torch.where(chosen[:, None], taught, base)

    def _without_adapter(self, run: Callable[[], Any]) -> Any:
        with self.model.disable_adapter():
            return run()

    def _runs_twice(self, rows: Sequence[bool]) -> bool:
        return any(rows) and not all(rows) and not mixes_rows(self.model)

    def _rows_of(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[bool]:
        if self._rows is not None:
            return self._rows
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = [
            self.tokenizer.decode(ids[kept.bool()], skip_special_tokens=True)
            for ids, kept in zip(input_ids, mask, strict=True)
        ]
        return self.opens(texts)


def load_gated(base: BaseModel | str, folder: str | Path) -> GatedModel:
    """Loads a gated adapter, which plain peft would load without its gate.

    Args:
        base: The base model, or its name.
        folder: The adapter's folder, as a run with `model.gate` exports it.

    Raises:
        InputError: If the folder holds no adapter of this base model, or one without a gate.
    """
    table = read_gate(folder)
    if table is None:
        raise InputError(f"`adapter` {str(folder)!r} has no gate ({GATE_FILE} is missing). Load it with peft.")
    base = BaseModel.of(base)
    return GatedModel(load_adapter(base.load(), folder, base.source), table, base.load_tokenizer())
