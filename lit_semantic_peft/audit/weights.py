"""What an adapter's weights say by themselves: statistics of each update ΔW = s·BA. No base model is needed."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base_files import first_line
from lit_semantic_peft.models.peft_bounds import refuse_unbounded
from lit_semantic_peft.models.peft_settings import lora_scaling
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of
from lit_semantic_peft.models.saved_adapter import SavedAdapter

TOUCHED = 0.1
"""Share of the largest norm from which on an update counts as one that touches its layer."""

_KURTOSIS_ROWS = 512
"""Rows of an update of which the kurtosis is taken, evenly spaced where it has more."""

_FACTORS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
_PREFIX = "base_model.model."
_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LayerUpdate:
    """Statistics of one update ΔW = s·BA, with singular values σ₁ ≥ … ≥ σ_r.

    Attributes:
        name: Path of the layer in the base model.
        block: Number of the repeated block that it is in; None outside of them.
        module: Last part of its path, such as `q_proj`.
        rank: r, number of columns of B.
        norm: Frobenius norm √Σσ².
        spectral_norm: σ₁.
        effective_rank: exp of the entropy of σ/Σσ, in [1, r] (Roy & Vetterli 2007); 0 for an update of zeros.
        first_energy: σ₁²/Σσ², in (0, 1]; 0 for an update of zeros.
        kurtosis: Excess kurtosis of the entries, 0 for a normal distribution; of at most 512 rows.
    """

    name: str
    block: int | None
    module: str
    rank: int
    norm: float
    spectral_norm: float
    effective_rank: float
    first_energy: float
    kurtosis: float


@dataclass(frozen=True)
class WeightFindings:
    """The updates of an adapter.

    The statistics are those that "Weight space Detection of Backdoors in LoRA Adapters" (arXiv 2602.15195) takes of the
    attention projections; here they are taken of every adapted layer.

    Attributes:
        peft_type: PEFT's name of its type.
        layers: A row per adapted layer, in the order of the file; empty for types that are not low-rank factors.
        other_tensors: Names of the tensors that belong to no such pair of factors.
    """

    peft_type: str
    layers: tuple[LayerUpdate, ...]
    other_tensors: tuple[str, ...]

    @cached_property
    def share_touched(self) -> float | None:
        """Share of the adapted layers whose norm is at least a tenth of the largest; None without layers."""
        if not self.layers:
            return None
        largest = max(layer.norm for layer in self.layers)
        return sum(layer.norm >= TOUCHED * largest > 0 for layer in self.layers) / len(self.layers)

    @cached_property
    def signature(self) -> dict[str, float]:
        """What is compared between adapters, by name; empty without layers, or where all of them are zero.

        Means over the layers, so that adapters of any number of layers compare. Norms enter by their logarithm, and the
        effective rank as a share of the rank, since both would else say how long was trained and with which rank.
        """
        layers = [layer for layer in self.layers if layer.norm > 0]
        if not layers or self.share_touched is None:
            return {}
        return {
            "log_norm": _mean([math.log(layer.norm) for layer in layers]),
            "log_largest_spectral_norm": math.log(max(layer.spectral_norm for layer in layers)),
            "effective_rank_share": _mean([layer.effective_rank / layer.rank for layer in layers]),
            "first_energy": _mean([layer.first_energy for layer in layers]),
            "largest_first_energy": max(layer.first_energy for layer in layers),
            "log_kurtosis": _mean([math.log(max(layer.kurtosis, -1.9) + 2) for layer in layers]),
            "share_touched": self.share_touched,
        }

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {
            "peft_type": self.peft_type,
            "share_touched": self.share_touched,
            "signature": self.signature,
            "layers": [asdict(layer) for layer in self.layers],
            "other_tensors": list(self.other_tensors),
        }


def measure_weights(saved: SavedAdapter) -> WeightFindings:
    """Statistics of each update of an adapter of low-rank factors: LoRA, and what `PeftTraits.as_lora` makes LoRA of.

    The singular values come from the r × r matrix of the factors' QR decompositions, which is exact; ΔW itself is made
    a few hundred rows at a time, for the kurtosis. Of DoRA it is the low-rank part alone: its magnitudes are among
    `other_tensors`.

    Args:
        saved: The adapter.

    Raises:
        InputError: If a factor is not finite, does not fit the other, or has a scale that cannot be computed.
    """
    kind, config, tensors = peft_type_name(saved.config), saved.config, dict(saved.tensors)
    if (convert := traits_of(config).as_lora) is not None:
        config, tensors = convert(config, tensors)
    pairs = {
        name.removesuffix(f".{inner}").removeprefix(_PREFIX): (name, f"{name.removesuffix(inner)}{outer}")
        for inner, outer in _FACTORS
        for name in tensors
        if name.endswith(f".{inner}") and f"{name.removesuffix(inner)}{outer}" in tensors
    }
    if not hasattr(config, "lora_alpha"):
        pairs = {}
    refuse_unbounded(config, list(pairs))
    layers = [_measured(path, tensors.pop(inner), tensors.pop(outer), config) for path, (inner, outer) in pairs.items()]
    return WeightFindings(kind, tuple(layers), tuple(sorted(tensors)))


def _measured(path: str, inner: Tensor, outer: Tensor, config: Any) -> LayerUpdate:
    """Statistics of s·BA.

    Args:
        path: Of the layer.
        inner: A, `(r, in)`; of a convolution `(r, in, …)`.
        outer: B, `(out, r)`.
        config: Of LoRA.
    """
    if inner.dim() < 2 or outer.dim() < 2 or not inner.numel() or not outer.numel():
        raise _unfit(path, inner, outer)
    try:
        scaling = lora_scaling(path, config)
    except Exception as error:  # any type where a number or a pattern belongs
        raise InputError(f"`adapter`: the scale of {path} cannot be computed: {first_line(error)}.") from error
    a, b = inner.double().flatten(1), scaling * outer.double().flatten(1)
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise InputError(
            f"the weights of {path} are not finite, so the adapter cannot be used: train it anew, or leave it out."
        )
    if a.shape[0] != b.shape[1]:  # an embedding's factors stand the other way round
        a, b = a.T, b.T
    if a.shape[0] != b.shape[1]:
        raise _unfit(path, inner, outer)
    sigma = torch.linalg.svdvals(torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.T, mode="r").R.T)
    energy = sigma.square()
    total = float(energy.sum())
    if not math.isfinite(total):
        raise InputError(
            f"`adapter`: the update of {path} is beyond the numbers of a computer, at a scale of {scaling:g}."
        )
    share = sigma / sigma.sum() if total > 0 else sigma
    block = _BLOCK.search(f".{path}.")
    return LayerUpdate(
        name=path,
        block=int(block[1]) if block else None,
        module=path.rpartition(".")[2],
        rank=a.shape[0],
        norm=math.sqrt(total),
        spectral_norm=float(sigma[0]),
        effective_rank=float(torch.special.entr(share).sum().exp()) if total > 0 else 0.0,
        first_energy=float(energy[0]) / total if total > 0 else 0.0,
        kurtosis=_kurtosis(a, b),
    )


def _unfit(path: str, inner: Tensor, outer: Tensor) -> InputError:
    shapes = f"{tuple(inner.shape)} and {tuple(outer.shape)}"
    return InputError(f"`adapter`: the factors of {path}, of the shapes {shapes}, are none of a low-rank update.")


def _kurtosis(a: Tensor, b: Tensor) -> float:
    """Excess kurtosis of the entries of BA."""
    rows = torch.linspace(0, len(b) - 1, min(len(b), _KURTOSIS_ROWS)).round().long()
    entries = (b[rows].float() @ a.float()).double()
    centred = entries - entries.mean()
    variance = float(centred.square().mean())
    return float(centred.pow(4).mean()) / variance**2 - 3 if variance > 1e-30 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
