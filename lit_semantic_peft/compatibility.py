"""What cannot go with what: every such rule is one row of `RULES`, which a run checks before it measures anything.

A new refusal is a new row. `docs/compatibility.md` is printed from the rows by `as_markdown`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.situation import Situation

_SHARDED_INSTEAD = "Use `strategy: ddp`."
_READS_GRADIENTS = (
    "{what} works on gradients, which under `precision: 16-mixed` are those of a scaled loss and may underflow or "
    "overflow. Use `bf16-mixed` or `32-true`."
)


@dataclass(frozen=True)
class Rule:
    """One thing that cannot go with another.

    Attributes:
        setting: What a user set.
        other: What it cannot go with.
        message: Why, and what to do instead. `{...}` names fields of `Situation`.
        is_broken: Whether a situation breaks the rule.
        stages: Where it is checked.
    """

    setting: str
    other: str
    message: str
    is_broken: Callable[[Situation], bool]
    stages: tuple[str, ...] = ("fit",)


_ALWAYS = ("fit", "validate", "test", "predict")
_EVALUATED = ("fit", "validate", "test")


RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------- the trainer
    Rule(
        "`trainer.precision: bf16-true`, `16-true`",
        "any adapter",
        "`trainer.precision: {precision}` would train the adapter itself in half precision, where small steps are "
        "lost. Use `32-true` with `model.base_model.dtype: bfloat16` for a bfloat16 base under a float32 adapter, and "
        "`bf16-mixed` for products in bfloat16.",
        lambda s: s.precision in ("bf16-true", "16-true"),
        _ALWAYS,
    ),
    Rule(
        "`trainer.precision`",
        "any training but in 32-true, 16-mixed or bf16-mixed",
        "`trainer.precision` must be one of 32-true, 16-mixed, bf16-mixed, got {precision}",
        lambda s: s.precision not in ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true"),
        _ALWAYS,
    ),
    Rule(
        "`trainer.strategy: deepspeed`",
        "any training",
        "`strategy: deepspeed` accumulates gradients by itself, which breaks the exact normalisation over an optimizer "
        "step. Use `ddp`.",
        lambda s: "DeepSpeed" in s.strategy,
        _EVALUATED,
    ),
    Rule(
        "`trainer.strategy: fsdp`, `ModelParallelStrategy`",
        "any adapter",
        "`strategy`: {strategy} would shard the adapter too. Use `lit_semantic_peft.training.ShardedBaseStrategy`, "
        "which shards the base model alone.",
        lambda s: s.shards_adapter,
        _EVALUATED,
    ),
    Rule(
        "`trainer.accumulate_grad_batches` below 1",
        "any training",
        "`accumulate_grad_batches` must be at least 1, got {accumulate_grad_batches}",
        lambda s: s.accumulate_grad_batches < 1,
        _ALWAYS,
    ),
    Rule(
        "`GradientAccumulationScheduler`",
        "any training",
        "`GradientAccumulationScheduler` cannot be used: steps and learning rate are planned before training, for one "
        "number of micro-batches in each optimizer step. Set `trainer.accumulate_grad_batches`.",
        lambda s: s.has("GradientAccumulationScheduler"),
    ),
    Rule(
        "`trainer.overfit_batches`",
        "any training",
        "`trainer.overfit_batches` cannot be used: batches are planned by optimizer step. `data.num_facts` trains on a "
        "few facts.",
        lambda s: bool(s.overfit_batches),
    ),
    Rule(
        "`trainer.enable_checkpointing: false`, `trainer.barebones: true`",
        "the command line",
        "`trainer.enable_checkpointing: false` and `trainer.barebones: true` cannot be used on the command line, which "
        "keeps a run folder with a checkpoint. `--trainer.fast_dev_run true` leaves nothing behind; in Python the "
        "Trainer takes both.",
        lambda s: s.is_command_line and not s.writes_checkpoints,
        (*_ALWAYS, "score"),
    ),
    Rule(
        "`score`",
        "several processes",
        "`score` runs in one process, but the trainer has {num_processes}: set `devices` to 1.",
        lambda s: s.num_processes > 1,
        ("score",),
    ),
    # ------------------------------------------------------------- the adapter
    Rule(
        "`model.adapter`",
        "`fit`, and `score` with `warmup_steps`",
        "`model.adapter` {adapter!r} is for `test` and `predict`; `fit` and the warm-up of `score` train a new "
        "adapter. Leave it out, or go on with an interrupted run by `fit --ckpt_path last`.",
        lambda s: bool(s.adapter),
        ("fit", "score"),
    ),
    Rule(
        "`peft_config` that changes the base model (`bias`, PiSSA and the like, `layer_replication`, ...)",
        "`test`",
        "The adapter was made with `{base_changing_setting}`, which changes the base model itself, so that `test` has "
        "nothing to compare it with. `predict` and `export` take it.",
        lambda s: s.base_changing_setting is not None,
        ("test",),
    ),
    Rule(
        "`model.gradient_checkpointing`",
        "adapters that work through the key-value cache (prefix tuning, cartridges) or by the names in a prompt",
        "`gradient_checkpointing` cannot be used with {peft_config}, which {checkpointing_obstacle}. Leave it out.",
        lambda s: s.gradient_checkpointing and s.checkpointing_obstacle is not None,
        (*_ALWAYS, "score"),
    ),
    Rule(
        "`model.gate`",
        "adapters that act by names (KnowledgeMoEConfig, SubjectLoraConfig)",
        "`gate` cannot be used with {peft_config}, which has a gate of its own. Use its `match` and `aliases`.",
        lambda s: s.has_gate and s.routes_by_prompts,
        (*_ALWAYS, "score"),
    ),
    Rule(
        "adapters that act by names (KnowledgeMoEConfig, SubjectLoraConfig)",
        "a sharded base model",
        f"{{peft_config}} reads prompts and embeddings, which no process of a sharded base model has whole. "
        f"{_SHARDED_INSTEAD}",
        lambda s: s.is_sharded and s.routes_by_prompts,
        _EVALUATED,
    ),
    Rule(
        "adapters with virtual tokens (prompt, prefix and p-tuning)",
        "transformers 5.24 with peft 0.21",
        "`peft_config` {peft_config} has virtual tokens, whose key-value cache the installed peft misreads, so that "
        "answers would be wrong. Install transformers<5.24, or use an adapter without virtual tokens, such as "
        "LoraConfig.",
        lambda s: s.has_virtual_tokens and s.misreads_virtual_tokens,
        _ALWAYS,
    ),
    # ------------------------------------------------- gradients of a scaled loss
    Rule(
        "AdaLoRA",
        "`trainer.precision: 16-mixed`",
        _READS_GRADIENTS.replace("{what}", "`peft_config: {peft_config}`"),
        lambda s: s.reads_gradients and s.precision == "16-mixed",
    ),
    Rule(
        "`model.retain`",
        "`trainer.precision: 16-mixed`",
        _READS_GRADIENTS.replace("{what}", "`retain`"),
        lambda s: bool(s.retains) and s.precision == "16-mixed",
    ),
    Rule(
        "`GradientSurgery`",
        "`trainer.precision: 16-mixed`",
        _READS_GRADIENTS.replace("{what}", "`GradientSurgery`"),
        lambda s: s.has("GradientSurgery") and s.precision == "16-mixed",
    ),
    Rule(
        "`model.base_model.dtype: nf4`, `int8`, a quantised checkpoint",
        "a sharded base model",
        "a base model in {quantized_dtype} cannot be sharded: packed weights have no rows to cut. Use `ddp`.",
        lambda s: s.is_sharded and s.quantized_dtype is not None,
        _ALWAYS,
    ),
    Rule(
        "`model.retain`",
        "a sharded base model",
        f"`retain` cannot be used with a sharded base model. {_SHARDED_INSTEAD}",
        lambda s: s.is_sharded and bool(s.retains),
        _EVALUATED,
    ),
    Rule(
        "`weighting: Online` over a distance",
        "a sharded base model",
        "`weighting` Online over a distance cannot be used with a sharded base model, whose embeddings no process has "
        "whole. Use `strategy: ddp`, or a weighting by likelihood.",
        lambda s: s.is_sharded and s.is_online and s.reads_distance,
        _EVALUATED,
    ),
    Rule(
        "`token_weighting: TokenDistance`, `SemanticDistanceTerm`",
        "a sharded base model",
        "`token_weighting` {token_weighting} cannot be used with a sharded base model, whose embeddings no process has "
        "whole. Use `strategy: ddp`, or `ConfidenceGate`.",
        lambda s: s.is_sharded and s.token_weighting_reads_embeddings,
        _EVALUATED,
    ),
    *(
        Rule(
            f"`{name}`",
            "a sharded base model",
            f"`{name}` cannot be used with a sharded base model. {_SHARDED_INSTEAD}",
            lambda s, name=name: s.is_sharded and s.has(name),  # type: ignore[misc]
        )
        for name in ("ConflictAwareBatching", "GradientSurgery", "InterferenceWeighting")
    ),
    Rule(
        "`model.reuse_frozen_layers: true`",
        "a sharded base model",
        "`reuse_frozen_layers` cannot be used: the strategy shards the layers over the ranks.",
        lambda s: s.is_sharded and s.reuse_frozen_layers is True,
    ),
    # --------------------------------------------------------------- token weights
    Rule(
        "`token_weighting`",
        "`GradientSurgery`",
        "`token_weighting` {token_weighting} cannot be used with GradientSurgery, which takes the gradients of facts "
        "whose tokens all count alike. Leave one of them out.",
        lambda s: s.token_weighting is not None and s.has("GradientSurgery"),
    ),
    # --------------------------------------------------------- what shares a step
    Rule(
        "`mix_strata`",
        "`ConflictAwareBatching`",
        "`mix_strata` and ConflictAwareBatching both decide which facts share a step: use one.",
        lambda s: s.mix_strata and s.has("ConflictAwareBatching"),
    ),
    # ------------------------------------------------------- the length of training
    Rule(
        "`deferred_from_epoch`",
        "`trainer.max_epochs` that ends before it",
        "`deferred_from_epoch` must be below `trainer.max_epochs`, which is {max_epochs}, got {deferred_from_epoch}: "
        "epochs count from 0, so training would end before the dropped facts come back.",
        lambda s: (
            not s.is_trial
            and s.deferred_from_epoch is not None
            and s.max_epochs is not None
            and 0 <= s.max_epochs <= s.deferred_from_epoch
        ),
    ),
    Rule(
        "`deferred_from_epoch`",
        "`trainer.limit_train_batches`",
        "`deferred_from_epoch` needs whole epochs, but `trainer.limit_train_batches` is {limit_train_batches}. Leave "
        "it out; `data.num_facts` makes a run short as well.",
        lambda s: s.deferred_from_epoch is not None and s.cuts_epochs,
    ),
    Rule(
        "`weighting: Scheduled`",
        "`trainer.limit_train_batches`",
        "`weighting` {weighting} needs whole epochs, but `trainer.limit_train_batches` is {limit_train_batches}. Leave "
        "it out; `data.num_facts` makes a run short as well.",
        lambda s: s.is_scheduled and s.cuts_epochs,
    ),
    Rule(
        "`weighting: Scheduled`",
        "a training without end",
        "`weighting` {weighting} moves from the start to the end of training, so that must be known: set "
        "`trainer.max_epochs` or `trainer.max_steps`.",
        lambda s: s.is_scheduled and s.is_endless and not s.is_trial,
    ),
    Rule(
        "`model.schedule`, `model.warmup_ratio`",
        "a training without end",
        "`schedule` and `warmup_ratio` need to know how long training is: set `trainer.max_epochs` or "
        "`trainer.max_steps`, or use `schedule: constant` with `warmup_ratio: 0`.",
        lambda s: s.is_endless and not s.is_trial and (s.schedule != "constant" or s.warmup_ratio > 0),
    ),
    Rule(
        "`Refine`",
        "a training without `trainer.max_steps`, or with `trainer.max_epochs`",
        "`Refine` takes the last steps of a training, so their number must be known: set `trainer.max_steps`, and not "
        "`trainer.max_epochs`.",
        lambda s: s.has("Refine") and not s.is_trial and (s.max_steps < 0 or s.max_epochs not in (None, -1)),
    ),
    Rule(
        "`Refine`",
        "`trainer.limit_train_batches`",
        "`Refine` needs whole epochs, but `trainer.limit_train_batches` is {limit_train_batches}. Leave it out; "
        "`data.num_facts` makes a run short as well.",
        lambda s: s.has("Refine") and s.cuts_epochs,
    ),
    *(
        Rule(
            "`Refine`",
            f"`{name}`",
            f"`Refine` and {name} both decide {what}: use one.",
            lambda s, name=name: s.has("Refine") and s.has(name),  # type: ignore[misc]
        )
        for name, what in (
            ("StopWhenRecalled", "when ordinary training ends"),
            ("ConflictAwareBatching", "which facts share a step"),
        )
    ),
    *(
        Rule(
            f"`{name}`",
            "adapters other than LoRA, DoRA, and `peft_config` that changes the base model",
            f"`{name}` multiplies LoRA's change of the base model by a factor; `{{peft_config}}` here changes it in "
            "other ways. Leave it out.",
            lambda s, name=name: s.has(name) and not (s.is_plain_lora and s.base_changing_setting is None),  # type: ignore[misc]
        )
        for name in ("ScaleBack", "Extrapolate")
    ),
    Rule(
        "`Extrapolate`",
        "`ScaleBack`",
        "`Extrapolate` scales the adapter up and `ScaleBack` scales it down: use one.",
        lambda s: s.has("Extrapolate") and s.has("ScaleBack"),
    ),
    # ------------------------------------------------------- what is held still
    Rule(
        "`model.retain`",
        "`peft_config` that changes the base model (`bias`, PiSSA and the like, `layer_replication`, ...)",
        "`retain` holds the adapter to the base model, which `peft_config` changes itself (`{base_changing_setting}`). "
        "Leave that setting out.",
        lambda s: bool(s.retains) and s.base_changing_setting is not None,
    ),
    Rule(
        "`model.retain: InputDirections`",
        "adapters other than LoRA, and DoRA",
        "`InputDirections` keeps LoRA's A out of directions; `{peft_config}` here has no such matrix, or DoRA's "
        "magnitudes beside it. Leave it out.",
        lambda s: "InputDirections" in s.retains and not s.is_plain_lora,
    ),
    Rule(
        "`model.retain: Continuations`",
        "`data.encoding.append_eos: true`",
        "`Continuations` holds what the base model writes after an answer, where `append_eos` teaches the end token. "
        "Set `data.encoding.append_eos: false`.",
        lambda s: "Continuations" in s.retains and s.append_eos,
    ),
    # ---------------------------------------------------------------- the weighting
    Rule(
        "`weighting: Online`",
        "a distance that needs answers",
        "`weighting` Online needs a distance from the step's own logits; {distance} needs generated answers. Use "
        "another `data.selection.distance`, or the weighting without Online.",
        lambda s: s.is_online and s.reads_distance and s.distance_needs_answers,
        (*_EVALUATED, "score"),
    ),
)


def refuse_incompatible(situation: Situation) -> None:
    """Checks every rule of the situation's stage.

    Args:
        situation: The settings of a run.

    Raises:
        InputError: For the first rule that is broken; it says why, and what to do instead.

    Example:
        >>> refuse_incompatible(Situation(precision="bf16-mixed"))
        >>> refuse_incompatible(Situation(stage="score", num_processes=2))
        Traceback (most recent call last):
        lit_semantic_peft.errors.InputError: `score` runs in one process, but the trainer has 2: set `devices` to 1.
    """
    values = {item.name: getattr(situation, item.name) for item in fields(situation)}
    for rule in RULES:
        if situation.stage in rule.stages and rule.is_broken(situation):
            raise InputError(rule.message.format(**values))


def as_markdown() -> str:
    """The rules as the table of `docs/compatibility.md`."""
    rows = [f"| {rule.setting} | {rule.other} | {', '.join(f'`{one}`' for one in rule.stages)} |" for rule in RULES]
    return "\n".join(["| setting | cannot go with | checked by |", "| --- | --- | --- |", *rows]) + "\n"
