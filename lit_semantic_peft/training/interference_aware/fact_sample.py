"""Which facts a method measures, and their gradient matrix, the same on every rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_semantic_peft.data import from_all_ranks
from lit_semantic_peft.data.rotation import rotating_choice
from lit_semantic_peft.interference import folder_if_large, gradient_matrix, gradient_matrix_rows
from lit_semantic_peft.training.module import SemanticPeftModule


def agreed_gradient_matrix(module: SemanticPeftModule, rows: Sequence[int], batch_size: int | None = None) -> Tensor:
    """Inner products K of the gradients of some facts, in their own prompts, with the current weights.

    Cost: about one forward and one backward pass of these facts, shared out to the ranks, see `gradient_matrix`. Their
    gradients take at most 1 GB of memory; larger ones are in a temporary file in the run folder. A collective: every
    rank gets the same matrix to the last bit, so that all ranks decide alike.

    Args:
        module: In a running trainer.
        rows: Fact indices.
        batch_size: Facts per forward pass; the data module's `micro_batch_size` where None.

    Returns:
        float32 `(k, k)` on the CPU, symmetric.

    Raises:
        DiskSpaceError: On all ranks, if the gradients of any do not fit into the run folder.
    """
    trainer, size = module.trainer, batch_size or module.data.batches.micro_batch_size
    share = -(-len(rows) // trainer.world_size)
    folder = folder_if_large(module.model, share, trainer.default_root_dir)
    if trainer.world_size == 1:
        return gradient_matrix(module.model, module.data.training_batches(rows, size), folder)
    mine = rows[trainer.global_rank :: trainer.world_size]
    block, _ = gradient_matrix_rows(module.model, module.data.training_batches(mine, size), folder)
    by_rank = torch.cat(from_all_ranks(block))
    order = torch.tensor(
        [row for rank in range(trainer.world_size) for row in range(rank, len(rows), trainer.world_size)]
    )
    back = order.argsort()
    matrix = by_rank[back][:, back]
    return (matrix + matrix.T) / 2  # K_ij and K_ji come from different ranks and differ in rounding


def trained_sample(module: SemanticPeftModule, num_facts: int, number: int) -> list[int]:
    """Some of the facts of the current epoch, another part of them at each number, ascending.

    Args:
        module: In a running trainer.
        num_facts: Size of the sample; all facts of the epoch where there are fewer.
        number: Number of the sample, from 0.

    Returns:
        Fact indices.
    """
    trained = module.data.prepared.trained_index(module.current_epoch)
    return sorted(rotating_choice(trained, num_facts, number, module.data.seed))
