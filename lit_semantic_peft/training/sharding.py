"""A base model too large for every process to hold: its frozen weights sharded, the small adapter whole on each."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from typing_extensions import override

from lit_semantic_peft.models.compiled import repeated_blocks
from lit_semantic_peft.training.module import SemanticPeftModule
from lit_semantic_peft.training.own_gradient import flattened, unflattened


class ShardedBaseStrategy(ModelParallelStrategy):
    """FSDP2 for the frozen base model: each process holds a share of it, and gathers one block at a time to compute.

    The adapter and its optimizer are small and stay whole in every process. So a checkpoint, an exported adapter, the
    gradient norm and the gradient per fact are what they are under `ddp`, and only the adapter's gradient is averaged,
    once in an optimizer step. Runs on GPUs (nccl) and CPUs (gloo).

    Some moments need the whole base model in each process: scoring, which loads it once before training where the
    scores are not in the cache; a batch of evaluation, because free answers are of different lengths; and the
    measurement of interference, whose facts the processes share.

    Args:
        process_group_backend: `nccl`, `gloo`, ...; by the kind of device where None.
        timeout: How long a collective waits for the other processes; the backend's default where None.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta | None = None) -> None:
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            **options,
        )

    @override
    def setup_environment(self) -> None:
        # Every process sees other facts.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def setup(self, trainer: Trainer) -> None:
        module = self.lightning_module
        assert isinstance(module, SemanticPeftModule)
        if not isinstance(module.model, FSDPModule):
            _shard_frozen(module.model, self.device_mesh["data_parallel"])
        super().setup(trainer)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Averages the gradients over the processes, as `ddp` does during the backward pass.

        Args:
            parameters: The trained parameters, the same on every rank.
        """
        own = flattened([parameter.grad for parameter in parameters], parameters)
        averaged = unflattened(self.reduce(own, reduce_op="mean"), parameters)
        for parameter, gradient in zip(parameters, averaged, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient)

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.gathered():
            return super().validation_step(*args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.gathered():
            return super().test_step(*args, **kwargs)

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.gathered():
            return super().predict_step(*args, **kwargs)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Has the whole base model in each process, which may then run it as often as it likes. A collective."""
        assert self.lightning_module is not None
        shards = [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]
        for shard in shards:
            shard.set_reshard_after_forward(False, recurse=False)
            shard.set_reshard_after_backward(False, recurse=False)
            shard.unshard()
        try:
            yield
        finally:
            for shard in shards:
                shard.set_reshard_after_forward(True, recurse=False)
                shard.set_reshard_after_backward(True, recurse=False)
                shard.reshard()

    # What is trained is whole in every process, so checkpoints are those of an ordinary strategy.
    restore_checkpoint_after_setup = Strategy.restore_checkpoint_after_setup
    lightning_restore_optimizer = Strategy.lightning_restore_optimizer
    lightning_module_state_dict = Strategy.lightning_module_state_dict
    load_model_state_dict = Strategy.load_model_state_dict
    optimizer_state = Strategy.optimizer_state
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict
    save_checkpoint = Strategy.save_checkpoint
    load_checkpoint = Strategy.load_checkpoint


def whole_base(trainer: Trainer) -> AbstractContextManager[None]:
    """Lets each process run the base model on facts of its own; a collective where the base model is sharded.

    Args:
        trainer: The trainer.
    """
    strategy = trainer.strategy
    return strategy.gathered() if isinstance(strategy, ShardedBaseStrategy) else nullcontext()


def _shard_frozen(model: PeftModel, mesh: Any) -> None:
    """Shards each block of the base model, and then what is outside of the blocks."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for module in (*repeated_blocks(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
