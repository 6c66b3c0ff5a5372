"""For many facts: a seeded random projection of each gradient, stored on disk, that approximates inner products."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lit_semantic_peft.interference.per_fact_gradients import per_fact_gradients, trainable_parameters
from lit_semantic_peft.models.disk_space import reserve
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch

DEFAULT_DIMENSION = 4096


@dataclass(frozen=True)
class GradientSketch:
    """Projected gradients S g_i of k facts, memory-mapped: ⟨S g_i, S g_j⟩ estimates K_ij without bias.

    The error of a cosine has mean 0 and a standard deviation of about 1/√dimension (4096: 0.016), whatever the size of
    the adapter. So the signs of cosines far from 0 are right, and a conflict threshold (−0.05) is blurred by that much.

    Attributes:
        features: S g_i, float32 `(k, dimension)`, backed by `path`.
        path: The file, in NumPy's format. The caller keeps or deletes it.
    """

    features: np.ndarray
    path: Path

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, start: int, stop: int) -> Tensor:
        """Some facts' projected gradients, float32 `(stop − start, dimension)`, read into memory."""
        return torch.from_numpy(np.array(self.features[start:stop]))

    def gradient_dot(self) -> Tensor:
        """The estimate of the whole gradient matrix, float32 `(k, k)`, which must fit in memory."""
        features = self.rows(0, len(self))
        return features @ features.T


def gradient_sketch(
    model: nn.Module,
    batches: Sequence[Batch],
    path: str | Path,
    dimension: int = DEFAULT_DIMENSION,
    seed: int = 0,
) -> GradientSketch:
    """Projects the gradient of each fact to `dimension` numbers, while the gradients are computed.

    Each parameter has a random permutation, random signs and a random offset, drawn from the seed. Its entries are
    permuted, signed, and summed into `dimension` buckets of nearly equal size (a count sketch; Charikar et al. 2002,
    with a balanced hash). The signs make inner products unbiased. Cost: a pass over the gradient.

    Memory: the activations of one micro-batch, one micro-batch of projected gradients, and 12 bytes for each trainable
    parameter. On disk: 4·k·dimension bytes (10⁵ facts at 4096: 1.6 GB).

    Args:
        model: As in `gradient_matrix`; not changed.
        batches: As in `gradient_matrix`.
        path: File for the features; overwritten.
        dimension: Numbers per fact, ≥ 1.
        seed: Seed of the projection. The same seed, parameters and dimension give the same projection.

    Returns:
        The sketch, facts in the order of the batches' rows.

    Raises:
        DiskSpaceError: If the file does not fit on its disk.
        ValueError: If no parameter requires a gradient, there is no fact, or `dimension` is below 1.
    """
    num_facts = sum(len(batch) for batch in batches)
    if dimension < 1 or not num_facts:
        raise ValueError(f"`dimension` must be at least 1 and there must be facts, got {dimension} and {num_facts}")
    with undisturbed(model):
        store = _Projecting(trainable_parameters(model), num_facts, Path(path), dimension, seed)
        per_fact_gradients(model, batches, store)
        store.flush()
    return GradientSketch(np.load(path, mmap_mode="r"), Path(path))


def sketch_influence(
    sketch: GradientSketch,
    loss_weight: Tensor,
    num_trained_facts: int,
    threshold: float = 0.05,
    block: int = 2048,
) -> dict[str, Tensor]:
    """Interference between facts, computed from the sketch in blocks: the whole matrix is never in memory.

    Definitions, and the treatment of undefined values, are those of `influence`.

    Args:
        sketch: Sketch of k facts.
        loss_weight: w, float `(k,)`, ≥ 0.
        num_trained_facts: n ≥ 1.
        threshold: τ ≥ 0.
        block: Rows and columns per block; takes the memory of a few block² floats.

    Returns:
        `net_transfer`, `conflict_rate`, `harm_done`, `worst_aggressor_harm` float32 `(k,)`; `worst_aggressor`, a row
        index or −1, int64 `(k,)`.
    """
    size = len(sketch)
    squared = torch.cat([sketch.rows(*span).square().sum(dim=1) for span in _spans(size, block)])
    is_finite = torch.isfinite(squared)
    norm = squared.sqrt()
    pulled, num_others, num_conflicts, num_cosines, harm = (torch.zeros(size, dtype=torch.float64) for _ in range(5))
    worst_harm, worst = torch.zeros(size), torch.full((size,), -1)
    for first, last in _spans(size, block):
        left = sketch.rows(first, last)
        for start, stop in _spans(size, block):
            dot = left @ sketch.rows(start, stop).T
            other = is_finite[first:last, None] & is_finite[None, start:stop]
            other &= torch.arange(first, last)[:, None] != torch.arange(start, stop)[None, :]
            pull = torch.where(other, dot * loss_weight[start:stop].to(dot), 0.0)
            scale = norm[first:last, None] * norm[None, start:stop]
            has_cosine = other & (scale > 0)
            pulled[first:last] += pull.sum(dim=1)
            num_others[first:last] += other.sum(dim=1)
            num_cosines[first:last] += has_cosine.sum(dim=1)
            num_conflicts[first:last] += (has_cosine & (dot < -threshold * scale)).sum(dim=1)
            taken = (-pull).clamp(min=0)
            harm[start:stop] += taken.sum(dim=0)
            largest, column = taken.max(dim=1)
            is_worse = largest > worst_harm[first:last]
            worst[first:last] = torch.where(is_worse, column + start, worst[first:last])
            worst_harm[first:last] = torch.where(is_worse, largest, worst_harm[first:last])
    own = loss_weight.double() * squared.double()
    nan = torch.tensor(torch.nan, dtype=torch.float64)
    has_transfer = is_finite & (num_others > 0) & (own != 0)
    transfer = (num_trained_facts - 1) * pulled / num_others.clamp(min=1) / torch.where(has_transfer, own, 1.0)
    return {
        "net_transfer": torch.where(has_transfer, transfer, nan).float(),
        "conflict_rate": torch.where(num_cosines > 0, num_conflicts / num_cosines.clamp(min=1), nan).float(),
        "harm_done": torch.where(is_finite, harm, nan).float(),
        "worst_aggressor": worst,
        "worst_aggressor_harm": torch.where(is_finite, worst_harm, torch.nan),
    }


def sketch_error(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Error of estimated cosines, over pairs of different facts for which both cosines are defined.

    Args:
        estimate: Estimated gradient matrix, float `(k, k)`.
        exact: The exact one.

    Returns:
        `root_mean_square`, `maximum` and `bias` (the mean) of the error of K_ij / √(K_ii K_jj), always with the exact
        norms; NaN if there is no pair.
    """
    norm = exact.double().diagonal().clamp(min=0).sqrt()
    scale = norm[:, None] * norm[None, :]
    is_pair = (scale > 0) & torch.isfinite(estimate) & torch.ones_like(scale, dtype=torch.bool).triu(diagonal=1)
    error = (estimate.double() - exact.double())[is_pair] / scale[is_pair]
    if not len(error):
        return dict.fromkeys(("root_mean_square", "maximum", "bias"), float("nan"))
    return {
        "root_mean_square": float(error.square().mean().sqrt()),
        "maximum": float(error.abs().max()),
        "bias": float(error.mean()),
    }


class _Projecting:
    """A feature store that keeps projections only, and writes them to disk when the next micro-batch begins."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], num_facts: int, path: Path, dimension: int, seed: int
    ) -> None:
        self._path, self._dimension = path, dimension
        self._shape = (num_facts, dimension)
        self._projections = [_projection(p.numel(), dimension, seed, n, p.device) for n, p in enumerate(parameters)]
        self.clear()

    def clear(self) -> None:
        """Resets all features to zero, by a new file."""
        np.lib.format.open_memmap(self._path, mode="w+", dtype=np.float32, shape=self._shape)
        num_facts, dimension = self._shape
        with open(self._path, "r+b") as file:
            reserve(
                file,
                self._path.stat().st_size,
                f"The projected gradients of {num_facts} facts are stored there, {dimension} numbers each. Make room, "
                "or use fewer numbers (`sketch_size` of WarmGradients).",
            )
        self._rows, self._block = slice(0, 0), torch.zeros(0, self._dimension)

    def add(self, number: int, rows: slice, gradients: Tensor) -> None:
        """Adds the projection of some facts' gradients of one parameter."""
        if rows != self._rows:
            self.flush()
            self._rows = rows
            self._block = torch.zeros(len(gradients), self._dimension, device=gradients.device)
        order, sign, place = self._projections[number]
        width, dimension = len(order), self._dimension
        shuffled = (gradients.float() * sign)[:, order]
        folds = -(-(place + width) // dimension)
        padded = torch.nn.functional.pad(shuffled, (place, folds * dimension - place - width))
        self._block += padded.view(len(gradients), folds, dimension).sum(dim=1)

    def flush(self) -> None:
        """Writes the current micro-batch's features."""
        if len(self._block):
            features = np.load(self._path, mmap_mode="r+")  # unmapped at once, so that its pages do not stay in memory
            features[self._rows] = self._block.cpu().numpy()
            self._block = self._block[:0]


def _projection(width: int, dimension: int, seed: int, number: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Order and signs of a parameter's entries, and the bucket of the first; own random numbers for each parameter."""
    (state,) = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state) % 2**63)
    order = torch.randperm(width, generator=generator)
    sign = torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1
    place = int(torch.randint(0, dimension, (1,), generator=generator))
    return order.to(device), sign.to(device), place


def _spans(size: int, block: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, block):
        yield start, min(start + block, size)
