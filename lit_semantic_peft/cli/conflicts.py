"""Which facts conflict after a few training steps of a throw-away adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.data.loaders import fact_batches
from lit_semantic_peft.interference import folder_if_large, gradient_matrix, warm_up
from lit_semantic_peft.metrics import GradientInterference
from lit_semantic_peft.training import SemanticPeftModule

_SHOWN = 5


@dataclass(frozen=True)
class Conflicts:
    """Gradient conflicts after a warm-up.

    Attributes:
        metric: The gradient matrix and what follows from it.
        pairs: Fact indices and cosine of the worst pairs, worst first.
        steps: Optimizer steps of the warm-up.
    """

    metric: GradientInterference
    pairs: list[tuple[int, int, float]]
    steps: int


def find_conflicts(
    module: SemanticPeftModule,
    data: KnowledgeDataModule,
    prepared: PreparedFacts,
    pad_id: int,
    device: torch.device,
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    num_facts: int,
) -> Conflicts:
    """Trains an adapter for a few steps, discards it, and returns which of the kept facts conflict by then.

    Args:
        module: Gives the base model and the adapter's configuration; not changed.
        data: Gives batch size and seed; not changed.
        prepared: The facts.
        pad_id: Token id for padding.
        device: Where the model runs.
        folder: For a temporary file of the gradients, if they do not fit into memory.
        steps: Optimizer steps.
        learning_rate: Of the steps, constant.
        num_facts: How many of the kept facts are compared, chosen by the data's seed.

    Raises:
        InputError: If the model is not found or a loss is not finite.
    """
    model = module.new_model().to(device)
    kept, size = prepared.kept_index, data.batches.micro_batch_size
    order = np.random.default_rng(data.seed).permutation(kept).tolist()
    with tqdm(total=steps, desc="Warming up a throw-away adapter", unit="step") as bar:
        batches = fact_batches(prepared, order, size, pad_id)
        warm_up(model, batches, steps, learning_rate, on_step=lambda step, loss: bar.update())
    sample = sorted(order[:num_facts])
    metric = GradientInterference(
        sample, prepared.weights.at(sample, epoch=0, progress=0.0).tolist(), num_trained_facts=len(kept)
    )
    features = folder_if_large(model, len(sample), folder)
    metric.update(gradient_matrix(model, fact_batches(prepared, sample, size, pad_id), features))
    cosine = metric.compute()["gradient_cosine"].numpy()
    return Conflicts(metric, worst_pairs(cosine, sample), steps)


def worst_pairs(cosine: NDArray[np.floating], facts: Sequence[int]) -> list[tuple[int, int, float]]:
    """The few pairs of facts whose gradients point most against each other; none that help each other.

    Args:
        cosine: Of the gradients, `(n, n)`.
        facts: Their numbers, `(n,)`.
    """
    rows, columns = np.triu_indices(len(facts), k=1)
    order = np.argsort(cosine[rows, columns], kind="stable")[:_SHOWN]
    pairs = [(facts[rows[at]], facts[columns[at]], float(cosine[rows[at], columns[at]])) for at in order]
    return [pair for pair in pairs if pair[2] < 0]
