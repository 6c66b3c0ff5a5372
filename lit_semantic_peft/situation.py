"""What the rules of `compatibility` read: the settings of a run as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """The settings of a run, as plain data: the rules read nothing else. The defaults break no rule.

    Attributes:
        stage: `fit`, `validate`, `test`, `predict` or `score`.
        is_command_line: Whether the command line made the trainer.
        callbacks: Class names of the trainer's callbacks, those of their base classes among them.
        strategy: Class name of the trainer's strategy.
        is_sharded: Whether the strategy shards the base model over the processes.
        shards_adapter: Whether it shards the adapter too.
        num_processes: Processes of the trainer.
        precision: The trainer's precision.
        accumulate_grad_batches: The trainer's.
        max_epochs: The trainer's; None or -1 for no limit.
        max_steps: The trainer's; -1 for no limit.
        limit_train_batches: The trainer's: a number of micro-batches, or a share of them.
        overfit_batches: The trainer's.
        is_trial: Whether `fast_dev_run` is set.
        writes_checkpoints: Whether the trainer may write checkpoints.
        peft_config: Class name of the adapter's configuration.
        base_changing_setting: A setting of it that changes the base model itself, such as `bias: all`.
        checkpointing_obstacle: Why the adapter cannot be trained with gradient checkpointing; None where it can.
        routes_by_prompts: Whether the adapter acts only on prompts that name what was taught; `has_gate`: the module's.
        has_virtual_tokens: Whether the adapter puts virtual tokens before the input.
        reads_gradients: Whether the adapter reads its gradients in training, as AdaLoRA does.
        adapter: Folder of an exported adapter to load; None for a new one.
        gradient_checkpointing: The module's.
        reuse_frozen_layers: The module's.
        retains: Class names of the module's sources of retained text.
        append_eos: Whether training teaches the end token after an answer.
        schedule: The module's.
        warmup_ratio: The module's.
        weighting: Class name of the weighting.
        distance: Name of the distance that the weighting reads.
        is_online: Whether weights come from the training step's own logits.
        reads_distance: Whether an online weighting reads the distance, not the likelihood.
        distance_needs_answers: Whether the distance needs generated answers.
        token_weighting: Class name of the weighting of target tokens; None where all count alike.
        token_weighting_reads_embeddings: Whether it needs the base model's token embeddings.
        is_scheduled: Whether the weighting moves from the start to the end of training.
        deferred_from_epoch: Epoch from which dropped facts are trained too; None for never.
        mix_strata: Whether every optimizer step gets each stratum's share of the facts.
        quantized_dtype: Type to which the base weights are quantised, here or in their files; looked up if sharded.
        is_plain_lora: Whether it is LoRA without DoRA's magnitudes, so that what A cannot see is not changed.
        misreads_virtual_tokens: Whether the installed peft misreads the cache (`library_versions.misreads_cache`).
    """

    stage: str = "fit"
    is_command_line: bool = False
    callbacks: frozenset[str] = frozenset()
    strategy: str = "SingleDeviceStrategy"
    is_sharded: bool = False
    shards_adapter: bool = False
    num_processes: int = 1
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    max_epochs: int | None = 1
    max_steps: int = -1
    limit_train_batches: int | float = 1.0
    overfit_batches: int | float = 0.0
    is_trial: bool = False
    writes_checkpoints: bool = True
    peft_config: str = "LoraConfig"
    base_changing_setting: str | None = None
    checkpointing_obstacle: str | None = None
    routes_by_prompts: bool = False
    has_gate: bool = False
    has_virtual_tokens: bool = False
    reads_gradients: bool = False
    adapter: str | None = None
    gradient_checkpointing: bool = False
    reuse_frozen_layers: bool | None = None
    retains: frozenset[str] = frozenset()
    append_eos: bool = False
    schedule: str = "constant"
    warmup_ratio: float = 0.0
    weighting: str = "Uniform"
    distance: str = "ExpectedEmbeddingDistance"
    is_online: bool = False
    reads_distance: bool = False
    distance_needs_answers: bool = False
    token_weighting: str | None = None
    token_weighting_reads_embeddings: bool = False
    is_scheduled: bool = False
    deferred_from_epoch: int | None = None
    mix_strata: bool = False
    quantized_dtype: str | None = None
    misreads_virtual_tokens: bool = False
    is_plain_lora: bool = True

    @property
    def is_endless(self) -> bool:
        """Whether neither `max_epochs` nor `max_steps` ends the training."""
        return self.max_epochs in (None, -1) and self.max_steps < 0

    @property
    def cuts_epochs(self) -> bool:
        """Whether epochs are cut short. 1 is one micro-batch, 1.0 is all of them."""
        limit = self.limit_train_batches
        return not self.is_trial and (isinstance(limit, int) or limit != 1.0)

    def has(self, *callbacks: str) -> bool:
        """Whether the trainer has one of these callbacks.

        Args:
            callbacks: Class names.
        """
        return any(name in self.callbacks for name in callbacks)
