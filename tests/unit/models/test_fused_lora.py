"""LoRA's fused layers give what PEFT's own forward gives, and step aside where they would not."""

import copy

import pytest
import torch
from architectures import rows, trained
from lit_semantic_peft.models import fact_nll
from lit_semantic_peft.models.fused_lora import _FusedLora, fuse_lora, separate_lora
from lit_semantic_peft.tokens import collate, prefix_tree
from peft import LoraConfig
from peft.tuners.lora import Linear
from test_target_logits import tiny
from torch import nn

FACTS = rows(7)
NAMES = ["llama", "gpt2", "gpt_neox", "qwen2", "gemma3"]
STILL = {"gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}}


def model_of(name="llama", **settings):
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear", **settings})
    return trained(tiny(name, **STILL.get(name, {})), config).train()


@pytest.fixture
def fused(monkeypatch):
    """Shapes of the inputs of the layers that ran fused."""
    shapes, apply = [], _FusedLora.apply
    monkeypatch.setattr(_FusedLora, "apply", lambda x, *more: shapes.append(x.shape) or apply(x, *more))
    return shapes


def losses_and_gradients(model, *, tree=False):
    batch = collate(FACTS, range(len(FACTS)), 0)
    losses = fact_nll(model, batch, tree=prefix_tree(batch) if tree else None)
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    weighted = (torch.linspace(0.0, 2.0, len(losses), dtype=losses.dtype) * losses).sum()
    return losses.detach(), dict(zip(parameters, torch.autograd.grad(weighted, parameters.values()), strict=True))


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0
        assert (found[1][name] - gradient).norm() <= 1e-12 * gradient.norm(), name


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_peft(name, tree, fused):
    model = model_of(name).double()
    expected = losses_and_gradients(model, tree=tree)
    assert not fused
    fuse_lora(model)
    found = losses_and_gradients(model, tree=tree)
    linear = [one for one in model.modules() if type(one) is Linear and type(one.base_layer) is nn.Linear]
    assert len(fused) == len(linear)
    assert bool(fused) == (name != "gpt2")  # whose layers are `Conv1D`
    assert_same(found, expected)
    separate_lora(model)
    assert_same(losses_and_gradients(model, tree=tree), expected)
    assert len(fused) == len(linear)


def test_with_recomputed_activations_and_some_frozen_factors(fused):
    model = model_of().double()
    for name, parameter in model.named_parameters():
        if "q_proj.lora_A" in name or "k_proj.lora_B" in name:
            parameter.requires_grad_(False)
    expected = losses_and_gradients(model)
    fuse_lora(model)
    assert_same(losses_and_gradients(model), expected)
    num_once = len(fused)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(losses_and_gradients(model), expected)
    assert len(fused) == 3 * num_once


def hooked(model):
    first = next(one for one in model.modules() if type(one) is Linear)
    first.lora_B["default"].register_forward_hook(lambda *_: None)


def two_adapters(model):
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])


APART = {
    "dropout": (lambda: model_of(lora_dropout=0.1), lambda model: None, 0),
    "DoRA": (lambda: model_of(use_dora=True), lambda model: None, 0),
    "two adapters": (model_of, two_adapters, 0),
    "merged": (model_of, lambda model: model.merge_adapter(), 0),
    "base weights that are trained": (model_of, lambda model: model.requires_grad_(True), 0),
    "a hook": (model_of, hooked, -1),
}


@pytest.mark.parametrize("case", APART)
def test_steps_aside(case, fused):
    make, change, fewer = APART[case]
    model = make()
    change(model)
    fuse_lora(model)
    fact_nll(model, collate(FACTS, range(len(FACTS)), 0))
    num_layers = sum(type(one) is Linear for one in model.modules())
    assert len(fused) == (num_layers + fewer if fewer else 0)


def test_runs_only_where_a_graph_is_made_and_not_under_autocast(fused):
    model, batch = model_of(), collate(FACTS, range(len(FACTS)), 0)
    fuse_lora(model)
    with torch.no_grad():
        fact_nll(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        fact_nll(model, batch)
    with model.disable_adapter():
        fact_nll(model, batch)
    assert not fused
    fact_nll(model, batch)
    assert fused


def test_a_copy_of_the_model_runs_its_own_layers(fused):
    model = model_of().double()
    fuse_lora(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    found = losses_and_gradients(other)
    assert fused
    separate_lora(other)
    assert_same(found, losses_and_gradients(other))
