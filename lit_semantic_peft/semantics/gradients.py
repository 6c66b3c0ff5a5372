"""Gradients of facts after a short warm-up, as a feature for filters."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from typing_extensions import override

from lit_semantic_peft.arguments import require_seed
from lit_semantic_peft.cache import cache_folder
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.interference import folder_if_large, gradient_matrix, gradient_sketch, warm_up
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.models.undisturbed import cuda_devices
from lit_semantic_peft.semantics.features import Feature, ScoringContext
from lit_semantic_peft.semantics.table import FloatArray
from lit_semantic_peft.tokens import Batch, collate

logger = logging.getLogger(__name__)


class WarmGradients(Feature):
    """Rows whose inner products are those of the facts' gradients, K_ij = ⟨g_i, g_j⟩, after a warm-up.

    Before training there is hardly any interference to measure (2–4 % of pairs in conflict, 16–37 % after 13 steps). So
    a LoRA adapter on all linear layers is trained for some steps on the facts themselves, K is measured, and the
    adapter is discarded. It is not the adapter of the actual training: conflicts depend mostly on the facts and the
    base model.

    Up to `max_exact` facts K is exact and the rows are a square root of it, `(n, n)`. For more facts the rows are
    seeded projections of the gradients, `(n, sketch_size)`, whose inner products are unbiased, see `gradient_sketch`.
    Cost: `warmup_steps` training steps, and a forward and a backward of every fact.

    Args:
        warmup_steps: Optimizer steps before K is measured.
        learning_rate: Learning rate of the warm-up; AdamW, constant.
        rank: Rank of the throw-away LoRA adapter.
        max_exact: Up to so many facts K is exact. This takes 4 · n · P bytes, P the adapter's parameters.
        sketch_size: Columns of the projection.
        batch_size: Facts per step of the warm-up.
        seed: Seed of the adapter, of the order of the facts, and of the projection.

    Raises:
        InputError: If a setting is out of its range; from `measure`, if a gradient is not finite, or the disk of the
            cache has no room for the gradients.
    """

    version = 2

    def __init__(
        self,
        warmup_steps: int = 20,
        learning_rate: float = 2e-3,
        rank: int = 8,
        max_exact: int = 256,
        sketch_size: int = 1024,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("warmup_steps", warmup_steps, 0),
            ("rank", rank, 1),
            ("max_exact", max_exact, 0),
            ("sketch_size", sketch_size, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        require_seed(seed)
        self.warmup_steps = warmup_steps
        self.learning_rate = learning_rate
        self.rank = rank
        self.max_exact = max_exact
        self.sketch_size = sketch_size
        self.batch_size = batch_size
        self.seed = seed

    @override
    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        encoded = context.encode_facts(facts)

        def batches(rows: Sequence[int], size: int) -> list[Batch]:
            chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
            return [collate([encoded[row] for row in chunk], chunk, context.encoder.pad_id) for chunk in chunks]

        with torch.random.fork_rng(devices=cuda_devices(context.model)):
            torch.manual_seed(self.seed)
            config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules="all-linear")
            model = attach_adapter(context.model, config)
            try:
                shuffled = torch.randperm(len(facts)).tolist()
                losses = warm_up(model, batches(shuffled, self.batch_size), self.warmup_steps, self.learning_rate)
                if losses:
                    logger.info(
                        "Warm-up of a throw-away adapter: %d steps, loss from %.2f to %.2f",
                        len(losses), losses[0], losses[-1],
                    )  # fmt: skip
                in_order = batches(range(len(facts)), self.batch_size)
                cache = cache_folder()  # on disk; the system's temporary folder is often in memory
                if len(facts) <= self.max_exact:
                    features = folder_if_large(model, len(facts), cache)
                    rows = square_root(gradient_matrix(model, in_order, features).double().numpy())
                else:
                    cache.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryDirectory(dir=cache, prefix=".sketch-") as folder:
                        sketch = gradient_sketch(
                            model, in_order, Path(folder, "sketch.npy"), self.sketch_size, self.seed
                        )
                        rows = np.array(sketch.features, dtype=np.float64)
            finally:
                model.unload()
                context.model.eval().requires_grad_(False)
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            shown = ", ".join(repr(facts[row].id) for row in bad[:5])
            raise InputError(
                f"The gradients of {len(bad)} facts are not finite after the warm-up: {shown}. "
                "Lower the `learning_rate` of WarmGradients."
            )
        return rows


def square_root(gradient_dot: FloatArray) -> FloatArray:
    """Rows G with G·Gᵀ = K, for a symmetric K. Negative eigenvalues are rounding errors and treated as zero.

    Args:
        gradient_dot: K, float64 `(n, n)`. Where it is not finite, so are the rows.

    Example:
        >>> rows = square_root(np.array([[2.0, -1.0], [-1.0, 2.0]]))
        >>> (rows @ rows.T).round(12).tolist()
        [[2.0, -1.0], [-1.0, 2.0]]
    """
    is_finite = np.isfinite(np.diagonal(gradient_dot))
    rows = np.full_like(gradient_dot, np.nan)
    values, vectors = np.linalg.eigh(gradient_dot[np.ix_(is_finite, is_finite)])
    rows[np.ix_(is_finite, is_finite)] = vectors * np.sqrt(np.clip(values, 0.0, None))
    rows[np.ix_(is_finite, ~is_finite)] = 0.0
    return rows
