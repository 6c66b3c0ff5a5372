"""How unusual an adapter's weights are beside a bank of adapters of one's own."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from lit_semantic_peft.audit.weights import measure_weights
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import file_sha256
from lit_semantic_peft.models.saved_adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter

LEAST_ADAPTERS = 5
"""Adapters that a bank needs: with fewer, a standard deviation says nothing."""

UNUSUAL = 4.0
"""Largest absolute z from which on an adapter counts as unusual. How often that is a false alarm is measured on
each bank and stands beside it."""

_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class BankComparison:
    """An adapter beside a bank.

    Attributes:
        z_scores: How many standard deviations of the bank each number of the signature is from the bank's mean.
        left_out: The largest absolute z of each adapter of the bank beside the others, by its folder's name.
        false_alarms: Share of the bank's adapters that would be called unusual beside the others.
        low: Lower bound of its exact 95 % interval (Clopper & Pearson).
        high: Upper bound.
    """

    z_scores: Mapping[str, float]
    left_out: Mapping[str, float]
    false_alarms: float
    low: float
    high: float

    @property
    def largest(self) -> float:
        """The largest absolute z."""
        return max(abs(z) for z in self.z_scores.values())

    @property
    def share_as_unusual(self) -> float:
        """Share of the bank's adapters that are at least as unusual, in [0, 1]."""
        return sum(z >= self.largest for z in self.left_out.values()) / len(self.left_out)

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "num_adapters": len(self.left_out),
            "z_scores": dict(self.z_scores),
            "largest_z": self.largest,
            "limit": UNUSUAL,
            "share_as_unusual": self.share_as_unusual,
            "false_alarms": {"share": self.false_alarms, "low": self.low, "high": self.high},
            "left_out": dict(self.left_out),
        }


def compare_with_bank(
    signature: Mapping[str, float], folder: str | os.PathLike[str], own: str | Path | None = None
) -> BankComparison:
    """Compares the signature of an adapter with those of all adapters below a folder.

    Args:
        signature: Of the adapter.
        folder: The bank: any folder below which adapters are.
        own: Folder of the adapter; one of the bank with the same weights is left out.

    Raises:
        InputError: If the adapter has no signature, or fewer than five others are in the bank.
    """
    bank = read_bank(folder, own)
    if not signature:
        raise InputError("`bank`: this adapter has no low-rank factors that could be compared. Leave `bank` out.")
    if len(bank) < LEAST_ADAPTERS:
        raise InputError(
            f"`bank` {str(folder)!r} holds {len(bank)} adapters of low-rank factors beside this one; expected at least "
            f"{LEAST_ADAPTERS}."
        )
    left_out = {
        name: max(map(abs, z_scores(one, [other for key, other in bank.items() if key != name]).values()))
        for name, one in bank.items()
    }
    alarms = sum(z > UNUSUAL for z in left_out.values())
    interval = binomtest(alarms, len(left_out)).proportion_ci(0.95)
    return BankComparison(
        z_scores(signature, list(bank.values())),
        left_out,
        alarms / len(left_out),
        float(interval.low),
        float(interval.high),
    )


def read_bank(folder: str | os.PathLike[str], own: str | Path | None = None) -> dict[str, dict[str, float]]:
    """The signatures of all adapters below a folder, by their path in it; those without one are left out.

    Args:
        folder: The bank.
        own: Folder of an adapter whose weights are to be left out.

    Raises:
        InputError: If there is no such folder, or an adapter in it is damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"`bank` {str(folder)!r} is no folder. Expected a folder with adapters in it.")
    except_for = file_sha256(Path(own) / WEIGHTS_FILE) if own is not None else None
    signatures = {}
    for path in sorted(root.rglob(CONFIG_FILE)):
        weights = path.parent / WEIGHTS_FILE
        if weights.is_file() and file_sha256(weights) != except_for:
            try:
                found = measure_weights(read_adapter(path.parent, safetensors_only=True)).signature
            except InputError as error:
                raise InputError(f"`bank`, {path.parent}: {error}") from error
            if found:
                signatures[str(path.parent.relative_to(root))] = found
    return signatures


def z_scores(signature: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """(x − mean) / standard deviation of each number, by name.

    Args:
        signature: Of one adapter.
        others: Of at least two others. Where all are equal, a deviation of 10⁻⁶ is taken for theirs.

    Example:
        >>> z_scores({"a": 3.0}, [{"a": 0.0}, {"a": 1.0}, {"a": 2.0}])
        {'a': 2.0}
    """
    scores = {}
    for name, value in signature.items():
        values = np.array([other[name] for other in others])
        scores[name] = float((value - values.mean()) / max(values.std(ddof=1), _LEAST_DEVIATION))
    return {name: z if math.isfinite(z) else math.copysign(1e6, z) for name, z in scores.items()}
