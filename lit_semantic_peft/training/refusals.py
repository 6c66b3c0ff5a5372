"""What cannot be trained together: one function for all rules that need no more than module, trainer and data."""

from typing import TYPE_CHECKING

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import traits_of
from lit_semantic_peft.training.loss_weights import needs_whole_embeddings
from lit_semantic_peft.training.own_gradient import refuse_loss_scaling

if TYPE_CHECKING:
    from lit_semantic_peft.training.module import SemanticPeftModule

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def refuse_incompatible(module: "SemanticPeftModule", stage: str) -> None:
    """Refuses settings of which one cannot go with another.

    Args:
        module: In a trainer; its data module is set up, unless the stage is `predict`.
        stage: `fit`, `validate`, `test` or `predict`.

    Raises:
        InputError: Naming the setting, and what to use instead.
    """
    trainer = module.trainer
    precision = trainer.precision
    if precision in ("bf16-true", "16-true"):
        raise InputError(
            f"`trainer.precision: {precision}` would train the adapter itself in half precision, where small steps "
            "are lost. Use `32-true` with `model.base_model.dtype: bfloat16` for a bfloat16 base under a float32 "
            "adapter, and `bf16-mixed` for products in bfloat16."
        )
    if precision not in _PRECISIONS:
        raise InputError(f"`trainer.precision` must be one of {', '.join(_PRECISIONS)}, got {precision}")
    if stage == "predict":
        return
    if trainer.accumulate_grad_batches < 1:
        raise InputError(f"`accumulate_grad_batches` must be at least 1, got {trainer.accumulate_grad_batches}")
    if "DeepSpeed" in type(trainer.strategy).__name__:
        raise InputError(
            "`strategy: deepspeed` accumulates gradients by itself, which breaks the exact normalisation over an "
            "optimizer step. Use `ddp`."
        )
    if module._is_sharded and not hasattr(trainer.strategy, "average_gradients"):
        raise InputError(
            f"`strategy`: {type(trainer.strategy).__name__} would cut the adapter up too. Use "
            "`lit_semantic_peft.training.ShardedBaseStrategy`, which shards the base model alone."
        )
    if module._is_sharded and module.retain_weight:
        raise InputError("`retain_weight` cannot be used with a sharded base model. Use `strategy: ddp`.")
    if module._is_sharded and needs_whole_embeddings(module.data.weighting):
        raise InputError(
            "`weighting` Online over a distance cannot be used with a sharded base model, whose embeddings no "
            "process has whole. Use `strategy: ddp`, or a weighting by likelihood."
        )
    if stage == "fit" and "loss_scaling" in traits_of(module.peft_config).cannot:
        refuse_loss_scaling(trainer, f"peft_config: {type(module.peft_config).__name__}")
    if stage == "fit" and module.retain_weight:
        refuse_loss_scaling(trainer, "retain_weight")
