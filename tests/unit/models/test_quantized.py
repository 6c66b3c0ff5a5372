"""Base models in 4 and 8 bits against the numbers that their weights stand for."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lit_semantic_peft.adapters import FLoRAConfig, SubjectLoraConfig
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference.per_fact_gradients import gradient_matrix, one_backward_per_fact
from lit_semantic_peft.models import (
    BaseModel,
    FrozenLayers,
    attach_adapter,
    export_adapter,
    fact_nll,
    load_adapter,
)
from lit_semantic_peft.models import base as base_module
from lit_semantic_peft.models.attach import require_answer
from lit_semantic_peft.models.fast_ways import FastWays
from lit_semantic_peft.models.self_check import self_check
from lit_semantic_peft.reports.export import export_run
from lit_semantic_peft.tokens import EncodedFact, collate
from peft import HRAConfig, IA3Config, LoraConfig, PeftModel, VeraConfig
from transformers import AutoModelForCausalLM

from fixtures.training import fit

bitsandbytes = pytest.importorskip("bitsandbytes")

DTYPES = ("nf4", "int8")
ROUNDING = 0.02
"""Of bfloat16 through two layers, relative to the norm; four bits are off by 0.1 and more."""
ROWS = [EncodedFact((5, 6, 7, 8), (9, 10)), EncodedFact((20, 21), (22,)), EncodedFact((30, 31, 32, 33, 34), (35, 36))]


def batch():
    return collate(ROWS, range(len(ROWS)), 0, with_end=False)


def base_of(tiny_model, dtype):
    return BaseModel(str(tiny_model), dtype=dtype)


def adapted(base, config=None):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = attach_adapter(base, config or LoraConfig(r=3, target_modules="all-linear"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


class FirstToken:
    """Stands for `Anchors`: a prompt's first token is its name."""

    def named_tokens(self, ids):
        return tuple(place == 0 for place in range(len(ids)))


def gradients(model, **how):
    model.zero_grad()
    fact_nll(model, batch(), **how).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(left, right):
    """The largest of a tensor, relative to its norm."""
    assert left
    assert left.keys() == right.keys()
    return max(float((left[name].float() - right[name].float()).norm() / right[name].norm()) for name in left)


def relative(left, right):
    return float((left.float() - right.float()).norm() / right.float().norm())


@pytest.mark.parametrize(("dtype", "kind", "most"), [("nf4", "Linear4bit", 0.6), ("int8", "Linear8bitLt", 1.0)])
def test_linear_layers_are_quantized_and_the_rest_is_bfloat16(tiny_model, dtype, kind, most):
    model = base_of(tiny_model, dtype).load()
    layers = [one for one in model.modules() if isinstance(one, getattr(bitsandbytes.nn, kind))]
    assert len(layers) == 14
    of_layers = {id(one.weight) for one in layers}
    assert {p.dtype for p in model.parameters() if id(p) not in of_layers} == {torch.bfloat16}
    assert sum(one.weight.nbytes for one in layers) <= most * sum(one.in_features * one.out_features for one in layers)
    assert not model.training
    assert not any(p.requires_grad or p.device.type != "cpu" for p in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_and_gradients_are_those_of_what_the_weights_stand_for(tiny_model, dtype):
    base = base_of(tiny_model, dtype)
    model, plain = adapted(base.load()), adapted(base.load_dequantized())
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert relative(fact_nll(model, batch()).detach(), fact_nll(plain, batch()).detach()) < ROUNDING
    assert difference(gradients(model), gradients(plain)) < 3 * ROUNDING
    original = adapted(base_of(tiny_model, "float32").load())
    assert difference(gradients(original), gradients(plain)) > (0.2 if dtype == "nf4" else 0.01)


def test_an_8_bit_layer_is_a_linear_layer_of_rounded_weights(tiny_model):
    layer = base_of(tiny_model, "int8").load().model.layers[0].mlp.down_proj
    weight = bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB).requires_grad_()
    x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = x @ weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (layer(x), x @ weight.T)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_evaluation_between_two_steps_changes_no_gradient(tiny_model, dtype):
    model = adapted(base_of(tiny_model, dtype).load()).train()
    before = gradients(model)
    with torch.no_grad():
        fact_nll(model.eval(), batch())
    after = gradients(model.train())
    assert all(torch.equal(before[name], after[name]) for name in before)


def moved_by_the_batch(layer):
    """How far the output for a token changes when another token, with one large activation, stands beside it."""
    x = torch.randn(2, 1, layer.in_features, generator=torch.Generator().manual_seed(0))
    x[1, 0, :3] = 40.0
    with torch.no_grad():
        return relative(layer(x)[:1], layer(x[:1]))


def test_what_an_8_bit_layer_makes_of_a_token_does_not_depend_on_its_batch(tiny_model, monkeypatch):
    assert moved_by_the_batch(base_of(tiny_model, "int8").load().model.layers[0].self_attn.q_proj) < 1e-6
    monkeypatch.setattr(base_module, "run_exactly", lambda model: None)
    assert moved_by_the_batch(base_of(tiny_model, "int8").load().model.layers[0].self_attn.q_proj) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_self_check_allows_every_fast_way(tiny_model, dtype):
    base = base_of(tiny_model, dtype).load()
    assert self_check(base, ROWS[:2], 0) == FastWays()
    upper = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    assert self_check(attach_adapter(base, upper), ROWS[:2], 0, trains=True) == FastWays()


@pytest.mark.parametrize("dtype", DTYPES)
def test_reused_frozen_layers_give_the_same_loss_and_gradient(tiny_model, dtype):
    upper = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    model = adapted(base_of(tiny_model, dtype).load(), upper)
    frozen = FrozenLayers(model, int(batch().attention_mask.sum()))
    assert relative(fact_nll(model, batch(), frozen=frozen).detach(), fact_nll(model, batch()).detach()) < ROUNDING
    assert difference(gradients(model, frozen=frozen), gradients(model)) < 2 * ROUNDING


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, target_modules="all-linear"),
        LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
        FLoRAConfig(r=2, target_modules=["q_proj", "down_proj"]),
        SubjectLoraConfig(r=2, target_modules=["v_proj", "down_proj"]),
        VeraConfig(r=4, target_modules=["q_proj"]),
    ],
    ids=lambda config: type(config).__name__ + (" with DoRA" if getattr(config, "use_dora", False) else ""),
)
def test_the_gradient_matrix_is_that_of_one_backward_per_fact(tiny_model, dtype, config):
    config = replace(config)
    if isinstance(config, SubjectLoraConfig):
        config.anchors = FirstToken()
    model = adapted(base_of(tiny_model, dtype).load(), config)
    slow = one_backward_per_fact(model, [batch()])
    expected = slow @ slow.T
    assert relative(gradient_matrix(model, [batch()]), expected) < 2 * ROUNDING
    assert float(expected.diagonal().min()) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_that_peft_does_not_run_on_it_is_refused(tiny_model, dtype):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(InputError, match="the base model 'llama' cannot run with IA3Config"):
        require_answer(attach_adapter(base_of(tiny_model, dtype).load(), config))


def test_an_adapter_that_would_take_packed_numbers_for_weights_is_refused(tiny_model):
    config = HRAConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(InputError, match="HRALinear of peft computes with the packed numbers"):
        attach_adapter(base_of(tiny_model, "int8").load(), config)
    assert attach_adapter(base_of(tiny_model, "float32").load(), config)


@pytest.fixture(scope="module", params=DTYPES)
def trained(request, tmp_path_factory):
    """A training on a quantised base, and the folder of its exported adapter."""
    from fixtures.facts import write_facts
    from fixtures.models import save_tiny_model

    folder = tmp_path_factory.mktemp(request.param)
    base = BaseModel(str(save_tiny_model(folder / "model")), dtype=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(folder / "cache"))
        run = fit(
            folder / "model",
            write_facts(folder / "facts.jsonl"),
            model={"base_model": base},
            data={"base_model": base},
            trainer={"max_epochs": 6, "limit_val_batches": None},
        )
    export_adapter(run.module.model, folder / "adapter", base.source)
    return base, run, folder / "adapter"


def test_a_training_learns(trained):
    _, run, _ = trained
    assert run.losses[-1] < 0.7 * run.losses[0]
    assert {p.dtype for p in run.module.trained_parameters()} == {torch.float32}


def test_the_exported_adapter_is_the_trained_one(trained):
    base, run, folder = trained
    expected = fact_nll(run.module.model.eval(), batch()).detach()
    found = load_adapter(base.load(), folder, base.source)
    assert torch.equal(fact_nll(found, batch()).detach(), expected)
    with found.disable_adapter():
        assert relative(fact_nll(found, batch()).detach(), expected) > 0.05
    plain = PeftModel.from_pretrained(base.load(), folder)
    assert torch.equal(fact_nll(plain.eval(), batch()).detach(), expected)
    assert f"quantised to {base.dtype} by bitsandbytes" in (folder / "README.md").read_text()


def test_merging_adds_to_the_numbers_that_the_weights_stand_for(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, run, folder = trained
    export_run(folder, "merged", merge=True)
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    assert not hasattr(merged.config, "quantization_config")
    exact = fact_nll(load_adapter(base.load_dequantized(), folder, base.source), batch()).detach()
    assert relative(fact_nll(merged, batch()).detach(), exact) < 1e-4
    assert relative(exact, fact_nll(run.module.model.eval(), batch()).detach()) < 3 * ROUNDING


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_that_is_quantized_already_is_read_and_run_as_one_that_is_not(tiny_model, tmp_path, dtype):
    base = base_of(tiny_model, dtype)
    model = base.load()
    folder = Path(shutil.copytree(tiny_model, tmp_path / "quantized", ignore=shutil.ignore_patterns("*.safetensors")))
    model.save_pretrained(folder)
    stored = BaseModel(str(folder), dtype="bfloat16")
    assert stored.quantized_dtype == "bitsandbytes"
    assert torch.equal(fact_nll(stored.load(), batch()), fact_nll(base.load(), batch()))
    with pytest.raises(InputError, match=rf"`base_model.dtype: {dtype}`: .* are quantised already \(bitsandbytes\)"):
        BaseModel(str(folder), dtype=dtype).load()


@pytest.mark.parametrize(("method", "package"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_a_checkpoint_whose_library_is_missing_is_refused_with_its_name(tiny_model, tmp_path, method, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"(?i)no causal language model in .*{package}"):
        BaseModel(str(folder), dtype="bfloat16").load()


def test_without_the_library_it_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"`base_model.dtype: nf4` needs bitsandbytes.*lit-semantic-peft\[quantized\]"):
        BaseModel("nobody/no-such-model", dtype="nf4")
    assert BaseModel("nobody/no-such-model", dtype="bfloat16").name
