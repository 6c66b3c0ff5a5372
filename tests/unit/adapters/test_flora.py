"""FLoRA under peft's own functions, against ΔW = s · B G A written out."""

import subprocess
import sys

import pytest
import torch
from lit_semantic_peft.adapters import FLoRAConfig, registration
from lit_semantic_peft.adapters.registration import add_peft_type
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import (
    BaseModelSource,
    adapter_state_dict,
    attach_adapter,
    export_adapter,
    load_adapter,
    load_adapter_state_dict,
)
from lit_semantic_peft.models.export import export_as_lora
from lit_semantic_peft.models.peft_traits import traits_of
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from torch import nn

from fixtures.models import save_tiny_model, tiny_gpt2, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
ON_EVERY_LAYER = {
    "linear": (lambda: tiny_llama(tied=False), ["q_proj", "down_proj"]),
    "conv1d": (tiny_gpt2, ["c_attn", "c_fc"]),
    "embedding": (lambda: tiny_llama(tied=False), ["embed_tokens", "v_proj"]),
}


def flora(targets=("q_proj",), **settings):
    return FLoRAConfig(
        **{"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", "target_modules": list(targets)} | settings
    )


def moved(model, seed=1):
    """The model with every trained tensor away from where it started, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def written_out(model, name="default"):
    """s · B G A of every adapted layer by its path, `(out, in)`; of an embedding `(dimension, vocabulary)`."""
    found = {}
    for path, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A") and name in layer.lora_A:
            outer, core, inner = layer.lora_B[name].outer, layer.lora_B[name].core, layer.lora_A[name].weight
        elif hasattr(layer, "lora_embedding_core") and name in layer.lora_embedding_core:
            outer, core, inner = (
                part[name] for part in (layer.lora_embedding_B, layer.lora_embedding_core, layer.lora_embedding_A)
            )
        else:
            continue
        found[path] = layer.scaling[name] * outer.double() @ core.double() @ inner.double()
    return found


@pytest.mark.parametrize("kind", ON_EVERY_LAYER)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_update_is_the_product_of_three_and_merges_into_the_weights(kind, use_rslora):
    base_of, targets = ON_EVERY_LAYER[kind]
    base = base_of()
    before = {name: one.clone().double() for name, one in base.named_parameters()}
    model = moved(get_peft_model(base, flora(targets, use_rslora=use_rslora)))
    updates = written_out(model)
    assert len(updates) >= 3
    expected = logits(model)
    assert not torch.allclose(expected, logits(base_of()), atol=0.05)
    merged = model.merge_and_unload(safe_merge=True)
    for path, update in updates.items():
        weight = merged.get_parameter(f"{path}.weight").double()
        turned = update.T if kind == "conv1d" or "embed" in path else update
        torch.testing.assert_close(weight, before[f"{path}.weight"] + turned, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "num"), [("linear", 4), ("conv1d", 4), ("embedding", 3)])
def test_it_has_r_times_in_plus_out_and_r_squared_parameters(kind, num):
    base_of, targets = ON_EVERY_LAYER[kind]
    model = get_peft_model(base_of(), flora(targets))
    sizes = [update.shape for update in written_out(model).values()]
    assert len(sizes) == num
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trained == sum(3 * (size[0] + size[1]) + 3**2 for size in sizes)


@pytest.mark.parametrize("kind", ON_EVERY_LAYER)
def test_it_starts_as_the_base_model_and_the_core_moves_first(kind):
    base_of, targets = ON_EVERY_LAYER[kind]
    model = get_peft_model(base_of(), flora(targets)).eval()
    assert torch.equal(logits(model), logits(base_of()))
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for step in range(2):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert {name for name, one in trained.items() if one.grad.any()} == {
            name for name in trained if step or "core" in name
        }
        optimizer.step()


def test_pefts_functions_save_load_switch_and_disable_several_adapters(tmp_path):
    model = get_peft_model(tiny_llama(), flora())
    model.add_adapter("second", flora(["q_proj", "down_proj"], r=2))
    answers = {}
    for seed, name in enumerate(("default", "second")):
        model.set_adapter(name)
        answers[name] = logits(moved(model, seed))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_llama()))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path, adapter_name="first")
    assert isinstance(again.active_peft_config, FLoRAConfig)
    assert torch.equal(logits(again), answers["default"])
    again.load_adapter(tmp_path / "second", "other")
    again.set_adapter("other")
    assert torch.equal(logits(again), answers["second"])
    empty = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(empty), answers["default"])
    again.merge_adapter()
    torch.testing.assert_close(logits(again), answers["second"], rtol=1e-4, atol=1e-4)
    again.unmerge_adapter()
    torch.testing.assert_close(logits(again), answers["second"], rtol=1e-4, atol=1e-4)
    again.delete_adapter("other")
    again.set_adapter("first")
    torch.testing.assert_close(logits(again), answers["default"], rtol=1e-4, atol=1e-4)


def test_the_layers_take_different_adapters_for_different_rows():
    model = moved(get_peft_model(tiny_llama(), flora()))
    on, off = logits(model), logits(tiny_llama())
    mixed = model(input_ids=IDS, adapter_names=["default", "__base__"]).logits
    torch.testing.assert_close(mixed, torch.stack([on[0], off[1]]))
    embedding = moved(get_peft_model(tiny_llama(), flora(["embed_tokens"])))
    with pytest.raises(ValueError, match="cannot switch adapters within a batch"):
        embedding(input_ids=IDS, adapter_names=["default", "__base__"])


def test_checkpoints_and_exported_folders_hold_the_whole_adapter(tmp_path):
    source = BaseModelSource("./base", tmp_path / "base", "A/B", "f" * 32)
    model = moved(attach_adapter(tiny_llama(), flora()))
    other = attach_adapter(tiny_llama(), flora())
    load_adapter_state_dict(other, adapter_state_dict(model))
    assert torch.equal(logits(other), logits(model))
    export_adapter(model, tmp_path / "adapter", source)
    assert torch.equal(logits(load_adapter(tiny_llama(), tmp_path / "adapter", source)), logits(model))


WITHOUT_US = """
import sys, warnings
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, lora, flora, written = sys.argv[1:]
warnings.simplefilter("ignore")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])).logits, written)
assert not any(name.startswith("lit_semantic_peft") for name in sys.modules)
try:
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), flora)
except KeyError as error:
    print("refused", error)
"""


def test_as_plain_lora_it_loads_where_this_package_is_never_imported(tmp_path):
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base")
    source = BaseModelSource("./base", base, "A/B", "f" * 32)
    config = flora(["embed_tokens", "q_proj", "down_proj"], rank_pattern={"down_proj": 2}, alpha_pattern={"q_proj": 7})
    model = moved(attach_adapter(AutoModelForCausalLM.from_pretrained(base), config))
    export_adapter(model, tmp_path / "flora", source)
    export_as_lora(tmp_path / "flora", tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert not any("core" in name or "outer" in name for name in tensors)
    arguments = [str(tmp_path / name) for name in ("base", "lora", "flora", "logits.pt")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_US, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.05)
    # Its own folder is refused there, not read as another adapter.
    assert done.stdout.startswith("refused 'FLORA'")


def test_lora_has_no_plain_lora_to_become(tmp_path):
    source = BaseModelSource("./base", tmp_path / "base", "A/B", "f" * 32)
    export_adapter(attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"])), tmp_path / "one", source)
    with pytest.raises(InputError, match=r"of type LORA has no plain LoRA .* without --as_lora"):
        export_as_lora(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"target_parameters": ["weight"]},
        {"trainable_token_indices": [3]},
    ],
    ids=lambda one: next(iter(one)),
)
def test_settings_of_other_methods_are_refused(settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"`peft_config`: FLoRAConfig has no `{name}`"):
        flora(**settings)


def test_what_has_no_core_is_refused():
    convolution = nn.Sequential(nn.Conv2d(2, 2, 1))
    with pytest.raises(InputError, match="FLoRA adapts linear, Conv1D and embedding layers; 0 is a Conv2d"):
        get_peft_model(convolution, FLoRAConfig(target_modules=["0"]))
    model = get_peft_model(tiny_llama(), flora())
    with pytest.raises(InputError, match="cannot be added up"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


def test_the_type_is_a_member_of_pefts_own():
    assert add_peft_type("FLORA") is PeftType("FLORA") is PeftType["FLORA"] is flora().peft_type
    assert [kind.value for kind in PeftType].count("FLORA") == 1
    assert traits_of(flora()).learning_rate == 1e-2
    assert traits_of(LoraConfig()).as_lora is None


def test_another_peft_that_keeps_its_types_otherwise_is_refused(monkeypatch):
    def only_by_name(kinds, name, value):
        kinds._member_map_[name] = value

    monkeypatch.setattr(registration, "extend_enum", only_by_name)
    try:
        with pytest.raises(InputError, match=r"NOT_A_METHOD cannot be added to peft .*Install one of those"):
            add_peft_type("NOT_A_METHOD")
    finally:
        del PeftType._member_map_["NOT_A_METHOD"]
