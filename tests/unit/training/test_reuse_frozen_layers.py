"""Training with reused frozen layers is the training without."""

import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import adapter_state_dict
from lit_semantic_peft.semantics import Proximity
from lit_semantic_peft.training import SemanticPeftModule
from peft import LoraConfig

from fixtures.training import build


def upper_lora():
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[1])


def train(tiny_model, facts_file, peft_config=None, **settings):
    """Three epochs; returns the module and how often the lowest layer ran, in training and in all."""
    run = build(
        tiny_model,
        facts_file,
        model={"peft_config": peft_config or upper_lora(), **settings},
        data={"weighting": Proximity(gamma=2.0), "micro_batch_size": 5, "self_check": False},
        trainer={"max_epochs": 3},
    )
    run.module.configure_model()
    layer = run.module.model.get_base_model().model.layers[0]
    runs = []
    layer.register_forward_hook(lambda layer, *_: runs.append(layer.training))
    run.trainer.fit(run.module, datamodule=run.data)
    return run.module, len(runs)


@pytest.mark.parametrize(("reuse", "memory_mb"), [(None, 2048), (True, 2048), (True, 0)])
def test_the_adapter_is_that_of_all_layers(tiny_model, facts_file, reuse, memory_mb):
    plain, plain_runs = train(tiny_model, facts_file, reuse_frozen_layers=False)
    fast, fast_runs = train(tiny_model, facts_file, reuse_frozen_layers=reuse, frozen_layers_memory_mb=memory_mb)
    assert fast_runs == plain_runs / 3  # in the first of three epochs
    expected, got = adapter_state_dict(plain.model), adapter_state_dict(fast.model)
    for name, tensor in expected.items():
        assert (got[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
    assert any(tensor.abs().max() > 0 for name, tensor in expected.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_config": LoraConfig(r=4, target_modules="all-linear")},  # layer 0 is adapted
        {"frozen_layers_memory_mb": 0},  # does not fit, and nobody asked for the disk
    ],
)
def test_by_default_all_layers_run_where_reuse_is_not_safe(tiny_model, facts_file, settings):
    assert train(tiny_model, facts_file, **settings)[1] == train(tiny_model, facts_file, reuse_frozen_layers=False)[1]


def test_what_was_asked_for_and_cannot_be_is_refused(tiny_model, facts_file):
    config = LoraConfig(r=4, target_modules="all-linear")
    with pytest.raises(InputError, match="`reuse_frozen_layers` cannot be used: layer 0 or the embedding is trained"):
        train(tiny_model, facts_file, config, reuse_frozen_layers=True)
    with pytest.raises(InputError, match="`frozen_layers_memory_mb` must be at least 0, got -1"):
        SemanticPeftModule(frozen_layers_memory_mb=-1)


def test_bfloat16_autocast_keeps_what_the_layers_give(tiny_model, facts_file):
    with torch.autocast("cpu", torch.bfloat16):
        plain, _ = train(tiny_model, facts_file, reuse_frozen_layers=False)
        fast, runs = train(tiny_model, facts_file)
    assert runs
    for name, tensor in adapter_state_dict(plain.model).items():
        assert (adapter_state_dict(fast.model)[name] - tensor).norm() <= 0.02 * tensor.norm(), name
