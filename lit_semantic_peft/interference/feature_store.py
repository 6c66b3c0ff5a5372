"""Stores per-fact gradients until those of all facts are computed: in memory, or on disk to save memory."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lit_semantic_peft.interference.layer_rules import at_least_float32
from lit_semantic_peft.models.disk_space import reserve

# Each parameter's features begin at a multiple of so many numbers, so that rounding does not depend on the address.
_ALIGNED = 64

BYTES_IN_MEMORY = 1e9
"""More than that `folder_if_large` puts on disk."""


def folder_if_large(model: nn.Module, num_facts: int, folder: str | Path) -> str | Path | None:
    """Where to store per-fact gradients: in memory (None) up to 4·k·P = 1 GB, above that on disk.

    Args:
        model: Its trainable parameters have P numbers in total.
        num_facts: k, of this process.
        folder: The folder on disk.
    """
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return None if 4 * num_facts * num_parameters <= BYTES_IN_MEMORY else folder


class FeatureStore(Protocol):
    """Gradients of k facts, parameter by parameter."""

    def add(self, number: int, rows: slice, gradients: Tensor) -> None:
        """Adds `(B, numel)` to some facts' gradients of one parameter. All gradients start as zeros."""

    def clear(self) -> None:
        """Resets all gradients to zero."""


class InMemory:
    """Gradients in the memory of the model's device: 4·k·P bytes for k facts and P trainable parameters.

    Args:
        parameters: The trainable parameters.
        num_facts: k.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_facts: int) -> None:
        self._num_facts = num_facts
        self._like = [at_least_float32(parameter.detach()[:0]) for parameter in parameters]
        self._widths = [parameter.numel() for parameter in parameters]
        self.clear()

    def clear(self) -> None:
        """Resets all gradients to zero.

        Allocates one block per dtype and device. Many long-lived blocks, allocated between short-lived ones, would
        fragment the memory: a third of the features' size more.
        """
        numbers: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
        for number, like in enumerate(self._like):
            numbers[like.dtype, like.device].append(number)
        self._features: dict[int, Tensor] = {}
        for (dtype, device), group in numbers.items():
            sizes = [self._num_facts * self._widths[number] for number in group]
            whole = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
            block = torch.zeros(sum(whole), dtype=dtype, device=device)
            for number, size, part in zip(group, sizes, torch.split(block, whole), strict=True):
                self._features[number] = part[:size].view(self._num_facts, self._widths[number])

    def add(self, number: int, rows: slice, gradients: Tensor) -> None:
        """Adds to some facts' gradients of one parameter.

        Args:
            number: Which parameter.
            rows: Which facts.
            gradients: `(B, numel)`.
        """
        self._features[number][rows] += gradients

    def take(self, number: int) -> Tensor:
        """The gradients of one parameter, `(k, numel)`."""
        return self._features[number]


class OnDisk:
    """Gradients in a temporary file, memory-mapped one parameter at a time: memory for one parameter's gradients only.

    A context manager that deletes the file on exit. Float32, on the CPU.

    Args:
        parameters: The trainable parameters.
        num_facts: k. The file takes 4·k·P bytes.
        folder: Folder of the file, on a disk rather than in memory; created if missing.

    Raises:
        DiskSpaceError: If the file does not fit there: before anything is computed, and from `clear`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_facts: int, folder: str | Path) -> None:
        self._num_facts = num_facts
        self._widths = [parameter.numel() for parameter in parameters]
        self._starts = np.concatenate([[0], np.cumsum(self._widths)]) * num_facts * 4
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = tempfile.NamedTemporaryFile(dir=folder, prefix=".features-")  # noqa: SIM115 (closed in __exit__)
        try:
            self.clear()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "OnDisk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def clear(self) -> None:
        """Resets all gradients to zero, by reserving the file anew."""
        self._file.truncate(0)
        reserve(
            self._file,
            int(self._starts[-1]),
            f"The gradients of {self._num_facts} facts are stored there. Make room, measure fewer facts, or use a "
            "smaller adapter. The number of facts is `num_facts`, and `final_facts` after training, of the callback "
            "that measures (`--interference.final_facts`), `num_conflict_facts` of `score`, `max_exact` of "
            "WarmGradients.",
        )

    def add(self, number: int, rows: slice, gradients: Tensor) -> None:
        """Adds to some facts' gradients of one parameter.

        Args:
            number: Which parameter.
            rows: Which facts.
            gradients: `(B, numel)`.
        """
        start, stop, _ = rows.indices(self._num_facts)
        self._mapped(number, start, stop, "r+")[:] += gradients.float().cpu().numpy()

    def take(self, number: int) -> Tensor:
        """The gradients of one parameter, float32 `(k, numel)`, read into memory."""
        return torch.from_numpy(np.array(self._mapped(number, 0, self._num_facts, "r")))

    def _mapped(self, number: int, start: int, stop: int, mode: str) -> np.ndarray:
        width = self._widths[number]
        offset = int(self._starts[number]) + start * width * 4
        if stop == start:
            return np.zeros((0, width), dtype=np.float32)  # an empty range cannot be mapped
        shape = (stop - start, width)
        return np.memmap(self._file.name, dtype=np.float32, mode=mode, offset=offset, shape=shape)  # type: ignore[call-overload,no-any-return]
