"""The forward pass of a micro-batch: padded or as prefix trees, and with the retained texts of its step or without."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.data.situation import is_sharded
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import FrozenLayers, target_logits
from lit_semantic_peft.models.fast_ways import is_checked
from lit_semantic_peft.models.objective import Outputs
from lit_semantic_peft.models.tree_attention import prefix_tree_obstacle
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch, cheaper_tree, prefix_tree
from lit_semantic_peft.tokens.collate import joined
from lit_semantic_peft.training.own_gradient import sum_over_ranks
from lit_semantic_peft.training.retain import HeldDirections, held_still
from lit_semantic_peft.training.retain.penalty import Held, RetainPenalty
from lit_semantic_peft.training.reused_layers import reused_layers

if TYPE_CHECKING:
    from lit_semantic_peft.training.module import SemanticPeftModule

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


@dataclass
class ForwardPass:
    """Runs the micro-batches of a training.

    As prefix trees, the last micro-batch of an optimizer step takes the step's retained texts into its own forward and
    backward pass: the cost of a pass is paid once.

    Attributes:
        model: The model with its adapter.
        frozen: As in `target_logits`.
        retain: The penalty of what is retained; None for none.
        directions: What the adapter is kept out of.
        has_trees: Whether prefix trees run.
        is_shared: Whether retained texts may run beside facts: not where a callback replaces the gradient of the facts.
    """

    model: PeftModel
    frozen: FrozenLayers | None
    retain: RetainPenalty | None
    directions: Sequence[HeldDirections]
    has_trees: bool
    is_shared: bool

    def run(self, trainer: Trainer, batch: Batch) -> tuple[Outputs, Held | None]:
        """Runs a micro-batch, padded where a tree saves nothing.

        Args:
            trainer: In a training step.
            batch: The facts.

        Returns:
            What `target_logits` gives for the facts, and the retained texts that ran beside them, None if none did.
        """
        if (retain := self._retained_now(trainer)) is None:
            tree = cheaper_tree(batch) if self.has_trees else None
            return target_logits(self.model, batch, frozen=self.frozen, tree=tree), None
        chosen = retain.share(trainer)
        held = retain.batch(chosen).to(batch.labels.device)
        both = joined([batch, held], retain.pad_id)
        logits, targets, hidden = target_logits(self.model, both, tree=prefix_tree(both))
        num_targets = int((batch.labels[:, 1:] != IGNORE_INDEX).sum())
        facts_logits, held_logits = torch.split(logits, [num_targets, len(logits) - num_targets])
        of_facts = facts_logits, targets[:num_targets], None if hidden is None else hidden[:num_targets]
        return of_facts, retain.held(self.model, chosen, held, held_logits)

    def keep_out(self) -> None:
        """Keeps the adapter out of held directions, after a step of the optimizer."""
        for one in self.directions:
            one.project()

    def _retained_now(self, trainer: Trainer) -> RetainPenalty | None:
        if self.retain is None or not (self.has_trees and self.is_shared) or self.frozen is not None:
            return None
        is_last = not trainer.fit_loop._should_accumulate()
        return self.retain if is_last and self.retain.runs_beside(trainer) else None


def with_penalty(
    trainer: Trainer, weighted_sum: Tensor, terms: Tensor, held: Held | None
) -> tuple[Tensor, Tensor | None]:
    """The loss of a micro-batch, with the penalty of the retained texts that ran beside its facts.

    `finish_step` divides all of the gradient by S, which is known after the last forward pass of the step: the penalty
    is multiplied by S beforehand. A collective where retained texts ran, on all ranks alike.

    Args:
        trainer: In a training step.
        weighted_sum: Σ w_i ℓ_i of the micro-batch, a scalar with its graph.
        terms: This rank's sum of what `micro_batch_terms` gives over the step, float32 `(2,)`.
        held: The retained texts, in the last training step of an optimizer step; None if none ran.

    Returns:
        The loss, a scalar with its graph; and `Held.means` of what is in it. None if none ran, or no fact of the step
        counts, so that nothing would undo the factor and the texts must run apart.
    """
    if held is None or (normalizer := sum_over_ranks(trainer, terms)[1]) <= 0:
        return weighted_sum, None
    return weighted_sum + normalizer * held.penalty, held.means


def forward_pass(module: "SemanticPeftModule", *, begins: bool) -> ForwardPass:
    """How the micro-batches of a training run. A collective.

    Args:
        module: With its model, after the self-check, in a trainer.
        begins: Whether its adapter is new.

    Raises:
        InputError: If a setting asks for what the model does not allow, or a source of retained text refuses what the
            user gave.
    """
    model, trainer = module.model, module.trainer
    frozen = reused_layers(
        model,
        module.data.prepared,
        module.reuse_frozen_layers,
        module.frozen_layers_memory_mb,
        is_sharded(trainer),
    )
    retain, directions = held_still(module, begins=begins)
    return ForwardPass(
        model,
        frozen,
        has_trees=runs_trees(model, module.prefix_tree, is_compiled=module.is_compiled),
        retain=retain,
        directions=directions,
        # A callback that puts another gradient in place of that of the facts would take the penalty away.
        is_shared=not any(getattr(one, "replaces_gradient", False) for one in trainer.callbacks),  # type: ignore[attr-defined]
    )
