"""Every rule of what cannot go with what is broken by the situation it is for and by no other; the docs have it."""

from dataclasses import replace
from pathlib import Path

import pytest
from lit_semantic_peft.compatibility import RULES, as_markdown, refuse_incompatible
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.situation import Situation

ROOT = Path(__file__).resolve().parents[2]
SHARDED = {"is_sharded": True}
SCHEDULED = {"is_scheduled": True, "weighting": "Scheduled"}
REFINED = {"callbacks": frozenset({"Refine"}), "max_epochs": None, "max_steps": 9}
BROKEN = [
    ({"precision": "bf16-true"}, "would train the adapter itself in half precision"),
    ({"precision": "64-true"}, "must be one of 32-true, 16-mixed, bf16-mixed, got 64-true"),
    ({"strategy": "DeepSpeedStrategy"}, "deepspeed"),
    ({**SHARDED, "shards_adapter": True, "strategy": "FSDPStrategy"}, "FSDPStrategy would shard the adapter too"),
    ({"accumulate_grad_batches": 0}, "must be at least 1, got 0"),
    ({"callbacks": frozenset({"GradientAccumulationScheduler"})}, "Set `trainer.accumulate_grad_batches`."),
    ({"overfit_batches": 1}, "`trainer.overfit_batches` cannot be used"),
    ({"is_command_line": True, "writes_checkpoints": False}, "cannot be used on the command line"),
    ({"stage": "score", "num_processes": 2}, "the trainer has 2"),
    ({"adapter": "runs/a/adapter"}, "`model.adapter` 'runs/a/adapter'"),
    ({"stage": "test", "base_changing_setting": "bias: all"}, "made with `bias: all`"),
    (
        {"gradient_checkpointing": True, "checkpointing_obstacle": "has no layers", "peft_config": "NewConfig"},
        "`gradient_checkpointing` cannot be used with NewConfig, which has no layers. Leave it out.",
    ),
    (
        {"has_virtual_tokens": True, "misreads_virtual_tokens": True, "peft_config": "PromptTuningConfig"},
        "PromptTuning",
    ),
    (
        {"has_gate": True, "routes_by_prompts": True, "peft_config": "KnowledgeMoEConfig"},
        "KnowledgeMoEConfig, which has a gate of its own",
    ),
    (
        {**SHARDED, "routes_by_prompts": True, "peft_config": "KnowledgeMoEConfig"},
        "KnowledgeMoEConfig reads prompts and embeddings, which no process",
    ),
    (
        {"reads_gradients": True, "precision": "16-mixed", "peft_config": "AdaLoraConfig"},
        "AdaLoraConfig` works on",
    ),
    ({"retains": frozenset({"OwnSamples"}), "precision": "16-mixed"}, "`retain` works on gradients"),
    ({"retains": frozenset({"OwnSamples"}), "base_changing_setting": "bias: all"}, "base model, which `peft_config`"),
    (
        {"retains": frozenset({"InputDirections"}), "is_plain_lora": False, "peft_config": "IA3Config"},
        "`IA3Config` here",
    ),
    ({"retains": frozenset({"Continuations"}), "append_eos": True}, "append_eos: false"),
    ({"callbacks": frozenset({"GradientSurgery"}), "precision": "16-mixed"}, "`GradientSurgery` works on gradients"),
    ({**SHARDED, "quantized_dtype": "nf4"}, "a base model in nf4 cannot be sharded"),
    ({**SHARDED, "retains": frozenset({"OwnSamples"})}, "`retain` cannot be used with a sharded base model"),
    ({**SHARDED, "is_online": True, "reads_distance": True}, "Online over a distance"),
    ({**SHARDED, "token_weighting": "TokenDistance", "token_weighting_reads_embeddings": True}, "TokenDistance cannot"),
    ({"token_weighting": "ConfidenceGate", "callbacks": frozenset({"GradientSurgery"})}, "ConfidenceGate cannot be"),
    ({**SHARDED, "callbacks": frozenset({"ConflictAwareBatching"})}, "`ConflictAwareBatching` cannot be used with"),
    ({**SHARDED, "callbacks": frozenset({"GradientSurgery"})}, "`GradientSurgery` cannot be used with"),
    ({**SHARDED, "callbacks": frozenset({"InterferenceWeighting"})}, "`InterferenceWeighting` cannot be used with"),
    ({**SHARDED, "reuse_frozen_layers": True}, "`reuse_frozen_layers` cannot be used"),
    ({"mix_strata": True, "callbacks": frozenset({"ConflictAwareBatching"})}, "both decide which facts share a step"),
    ({"deferred_from_epoch": 3, "max_epochs": 3}, "below `trainer.max_epochs`, which is 3, got 3"),
    ({"deferred_from_epoch": 1, "max_epochs": 3, "limit_train_batches": 1}, "`deferred_from_epoch` needs whole epochs"),
    (
        {**SCHEDULED, "limit_train_batches": 0.5},
        "Scheduled needs whole epochs, but `trainer.limit_train_batches` is 0.5",
    ),
    ({**SCHEDULED, "max_epochs": None}, "moves from the start to the end of training"),
    ({"max_epochs": -1, "schedule": "cosine"}, "need to know how long training is"),
    ({"callbacks": frozenset({"Refine"}), "max_epochs": 3, "max_steps": 9}, "set `trainer.max_steps`, and not"),
    ({**REFINED, "limit_train_batches": 3}, "`Refine` needs whole epochs"),
    ({**REFINED, "callbacks": frozenset({"Refine", "StopWhenRecalled"})}, "when ordinary training ends: use one"),
    ({**REFINED, "callbacks": frozenset({"Refine", "ConflictAwareBatching"})}, "which facts share a step: use one"),
    ({"callbacks": frozenset({"ScaleBack"}), "is_plain_lora": False}, "`LoraConfig` here changes it in other ways"),
    ({"callbacks": frozenset({"Extrapolate"}), "is_plain_lora": False}, "`Extrapolate` multiplies LoRA's change"),
    ({"callbacks": frozenset({"Extrapolate", "ScaleBack"})}, "`ScaleBack` scales it down: use one"),
    ({"is_online": True, "reads_distance": True, "distance_needs_answers": True, "distance": "R"}, "R needs generated"),
]


def broken(situation: Situation) -> list[int]:
    return [at for at, rule in enumerate(RULES) if situation.stage in rule.stages and rule.is_broken(situation)]


@pytest.mark.parametrize(("changes", "text"), BROKEN)
def test_a_situation_that_breaks_one_rule(changes, text):
    situation = Situation(**changes)
    assert len(broken(situation)) == 1
    with pytest.raises(InputError) as caught:
        refuse_incompatible(situation)
    assert text in str(caught.value)
    assert "{" not in str(caught.value)
    assert not broken(replace(situation, stage="nothing"))


def test_each_rule_is_broken_once_above():
    assert sorted(broken(Situation(**changes))[0] for changes, _ in BROKEN) == list(range(len(RULES)))


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict", "score"])
def test_an_ordinary_run_breaks_none(stage):
    refuse_incompatible(Situation(stage=stage))
    refuse_incompatible(Situation(stage=stage, adapter=""))
    refuse_incompatible(Situation(stage=stage, precision="bf16-mixed", max_epochs=None, max_steps=10, **SHARDED))


def test_a_trial_run_may_be_cut_short():
    refuse_incompatible(
        Situation(is_trial=True, limit_train_batches=1, max_epochs=1, deferred_from_epoch=2, **SCHEDULED)
    )


def test_the_page_is_printed_from_the_rules():
    assert as_markdown() in (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
