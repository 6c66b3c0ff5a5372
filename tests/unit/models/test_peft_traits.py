import pytest
import torch
from architectures import ADAPTERS, trained
from lit_semantic_peft.models.peft_settings import base_changing_setting
from lit_semantic_peft.models.peft_traits import (
    PeftTraits,
    num_virtual_tokens,
    peft_type_name,
    traits_of,
    traits_of_forward,
)
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    CPTConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from fixtures.models import tiny_llama
from fixtures.releases import of_this_peft

BEFORE_THE_INPUT = [
    PromptTuningConfig(num_virtual_tokens=3),
    PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3], cpt_tokens_type_mask=[1, 2, 4]),
]
IN_THE_CACHE = [
    PrefixTuningConfig(num_virtual_tokens=3),
    *of_this_peft("CartridgeConfig", num_virtual_tokens=3),
]


def test_a_type_without_peculiarities_has_the_defaults():
    assert traits_of(LoraConfig()) == PeftTraits()
    model = trained(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    traits = traits_of(model)
    before = [parameter.clone() for parameter in model.parameters()]
    traits.load_extra_state(model, {"anything": 1})
    traits.after_optimizer_step(model, 0)
    assert traits.penalty(model) is None
    assert traits.extra_state(model) == {}
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_plain_model_has_nothing_peculiar():
    assert traits_of(tiny_llama()) == PeftTraits()
    assert num_virtual_tokens(tiny_llama()) == 0


@pytest.mark.parametrize("config", [*BEFORE_THE_INPUT, *IN_THE_CACHE], ids=peft_type_name)
def test_virtual_tokens_stand_before_the_input_or_in_the_cache(config):
    traits = traits_of(config)
    assert traits.virtual_tokens == ("input" if config in BEFORE_THE_INPUT else "cache")
    assert ("gradient_checkpointing" in traits.cannot) == (config in IN_THE_CACHE)
    assert traits.cannot.keys() >= {"merge", "reuse_frozen_layers", "prompt_cache"}


@pytest.mark.parametrize(
    ("name", "expected"), [("lora", 0), ("prompt_tuning", 3), ("p_tuning", 3), ("prefix_tuning", 0)]
)
def test_virtual_tokens_are_counted_while_the_adapter_is_on(name, expected):
    model = trained(tiny_llama(), ADAPTERS[name]())
    assert num_virtual_tokens(model) == expected
    with model.disable_adapter():
        assert num_virtual_tokens(model) == 0
        assert traits_of_forward(model) == PeftTraits()
        assert traits_of(model) == traits_of(model.active_peft_config)


def test_what_cannot_be_merged_is_what_peft_has_no_way_to_merge():
    """Every type of the installed PEFT: one that a new release brings is found here, not by a user."""
    for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        config = object.__new__(PEFT_TYPE_TO_CONFIG_MAPPING[kind])  # no settings are needed to ask for the type
        config.peft_type = kind
        traits = traits_of(config)  # what routes has the method, and refuses
        assert ("merge" in traits.cannot) != (hasattr(tuner, "merge_and_unload") and not traits.routes), kind


def test_the_rank_budget_is_state_beside_the_tensors():
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=20, tinit=2, tfinal=4, target_modules=["q_proj"])
    left, right = (trained(tiny_llama(), config_of) for config_of in (config, AdaLoraConfig(**config.to_dict())))
    assert "loss_scaling" in traits_of(config).cannot
    traits = traits_of(left)
    for step in range(8):
        left(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.sum().backward()
        traits.after_optimizer_step(left, step)
    state = traits.extra_state(left)
    assert state["exp_avg_ipt"]
    assert state["rank_pattern"]
    traits.load_extra_state(right, {})
    assert not traits.extra_state(right)["exp_avg_ipt"]
    traits.load_extra_state(right, state)
    after = traits.extra_state(right)
    assert after["rank_pattern"] == state["rank_pattern"]
    for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        assert after[name].keys() == state[name].keys()
        assert all(torch.equal(after[name][key], state[name][key]) for key in state[name])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoraConfig(), None),
        (LoraConfig(init_lora_weights="gaussian"), None),
        (LoraConfig(bias="all"), "bias: all"),
        (LoraConfig(init_lora_weights="pissa_niter_4"), "init_lora_weights: pissa_niter_4"),
        (LoraConfig(layer_replication=[(0, 2)]), "layer_replication"),
        (BOFTConfig(bias="boft_only"), "bias: boft_only"),
        (PromptTuningConfig(num_virtual_tokens=3), None),
    ],
)
def test_settings_that_change_the_base_are_named(config, expected):
    assert base_changing_setting(config) == expected
