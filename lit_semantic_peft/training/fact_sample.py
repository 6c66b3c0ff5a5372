"""Which facts a method looks at, and how their gradients lie to each other, the same on every rank."""

from collections.abc import Sequence

from torch import Tensor

from lit_semantic_peft.interference import gradient_matrix
from lit_semantic_peft.training.module import SemanticPeftModule
from lit_semantic_peft.training.rotation import rotating_choice


def agreed_gradient_matrix(module: SemanticPeftModule, rows: Sequence[int]) -> Tensor:
    """Inner products K of the gradients of some facts, as the model stands.

    Cost: about one forward and one backward pass of these facts on every rank, see `gradient_matrix`. A collective:
    ranks differ in rounding, and what they decide by it must not, so all take the first rank's matrix.

    Args:
        module: In a running trainer.
        rows: Fact indices.

    Returns:
        float32 `(k, k)` on the CPU.
    """
    matrix = gradient_matrix(module.model, module.data.training_batches(rows, module.data.micro_batch_size))
    agreed: Tensor = module.trainer.strategy.broadcast(matrix)
    return agreed


def kept_sample(module: SemanticPeftModule, num_facts: int, number: int) -> list[int]:
    """Some of the kept facts, another part of them at each number, ascending.

    Args:
        module: In a running trainer.
        num_facts: Size of the sample; all kept facts where there are fewer.
        number: Number of the sample, from 0.

    Returns:
        Fact indices.
    """
    return sorted(rotating_choice(module.data.prepared.kept_index, num_facts, number, module.data.seed))
