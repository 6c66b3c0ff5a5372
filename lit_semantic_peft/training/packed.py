"""Whether the micro-batches of a training run as prefix trees, and the tree of each."""

import logging

from peft import PeftModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.fast_ways import is_checked
from lit_semantic_peft.models.tree_attention import prefix_tree_obstacle
from lit_semantic_peft.tokens import Batch, PrefixTree, prefix_tree

logger = logging.getLogger(__name__)


def runs_trees(model: PeftModel, setting: bool | None, *, is_compiled: bool) -> bool:
    """Whether micro-batches run as prefix trees.

    Args:
        model: The model with its adapter, after its self-check.
        setting: None: where the self-check found that it is exact. True: always. False: never.
        is_compiled: Whether the layers are compiled, for padded batches.

    Raises:
        InputError: If `setting` is True and it is not exact, as far as is known.
    """
    if setting is False:
        return False
    obstacle = "its layers are compiled" if is_compiled else prefix_tree_obstacle(model)
    if setting and obstacle:
        raise InputError(f"`prefix_tree: true` cannot be used with this model: {obstacle}.")
    if not obstacle and not setting and not is_checked(model):
        obstacle = "no self-check has shown that it is exact"
    if obstacle:
        logger.info("Micro-batches are padded and do not run as prefix trees: %s", obstacle)
    return not obstacle


def tree_of(batch: Batch) -> PrefixTree | None:
    """The tree of a micro-batch; None where it saves nothing.

    Args:
        batch: The facts.
    """
    tree = prefix_tree(batch)
    return tree if tree is not None and tree.row.numel() < batch.labels[:, 1:].numel() else None
