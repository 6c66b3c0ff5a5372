"""Adapters of strangers: applied wholly, or refused with the name of what differs, within bounds of time and memory."""

import shutil
import time

import pytest
import torch
from architectures import trained
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModelSource, attach_adapter, export_adapter, load_adapter, peft_bounds
from lit_semantic_peft.models.adapter_state import differences
from lit_semantic_peft.models.peft_traits import exported_tensors
from peft import AdaLoraConfig, LoraConfig
from safetensors.torch import load_file

from fixtures.adapters import NOT_WHOLE, WEIGHTS, settings, two_targets
from fixtures.models import tiny_llama

INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return BaseModelSource("./my-base", tmp_path_factory.mktemp("base"), "my-base", "f" * 32)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    export_adapter(trained(tiny_llama(), two_targets()), folder, source)
    return folder


@pytest.fixture
def adapter(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "adapter")


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=INPUT_IDS).logits


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_an_adapter_that_is_not_whole_is_refused_and_what_differs_is_named(name, adapter, source):
    damage, parts = NOT_WHOLE[name]
    damage(adapter)
    base = tiny_llama()
    with pytest.raises(InputError) as caught:
        load_adapter(base, adapter, source)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("pattern", [r"(.*.*.*.*.*)+x", r"([a-z_.0-9]+)+\$"])
def test_a_pattern_that_is_never_done_does_not_hang(pattern, adapter, source, monkeypatch):
    monkeypatch.setattr(peft_bounds, "SECONDS_FOR_PATTERNS", 0.5)
    settings(target_modules=pattern)(adapter)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"matching .* takes longer than 0.5 seconds"):
        load_adapter(tiny_llama(), adapter, source)
    with pytest.raises(InputError, match="takes longer"):
        attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"], rank_pattern={pattern: 4}))
    assert time.monotonic() - start < 20


def test_an_honest_pattern_is_matched(source, tmp_path):
    model = trained(tiny_llama(), LoraConfig(target_modules=r".*\.(q|v)_proj", rank_pattern={r"layers\.1\..*": 2}))
    export_adapter(model, tmp_path / "adapter", source)
    torch.testing.assert_close(logits(load_adapter(tiny_llama(), tmp_path / "adapter", source)), logits(model))


def test_half_precision_and_the_older_file_are_read(whole, adapter, source):
    expected = logits(load_adapter(tiny_llama(), whole, source))
    state = load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    torch.save(state, adapter / "adapter_model.bin")
    torch.testing.assert_close(logits(load_adapter(tiny_llama(), adapter, source)), expected)
    torch.save({name: value.bfloat16() for name, value in state.items()}, adapter / "adapter_model.bin")
    model = load_adapter(tiny_llama(), adapter, source)
    assert {value.dtype for name, value in model.named_parameters() if "lora" in name} == {torch.float32}
    torch.testing.assert_close(logits(model), expected, atol=0.1, rtol=0.1)


def test_embeddings_that_peft_saves_beside_an_adapter_must_be_the_base_models(source, tmp_path):
    model = trained(tiny_llama(tied=False), LoraConfig(r=3, target_modules=["q_proj", "lm_head"]))
    model.save_pretrained(tmp_path / "adapter")
    assert any("base_layer" in name for name in load_file(tmp_path / "adapter" / WEIGHTS))
    torch.testing.assert_close(
        logits(load_adapter(tiny_llama(tied=False), tmp_path / "adapter", source)), logits(model)
    )
    with pytest.raises(InputError, match=r"not as the model holds it: .*lm_head\.base_layer\.weight"):
        load_adapter(tiny_llama(seed=1, tied=False), tmp_path / "adapter", source)


def test_an_adapter_with_ranks_left_is_whole(source, tmp_path):
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=8, tinit=2, tfinal=2, target_modules=["q_proj"])
    model = trained(tiny_llama(), config)
    for step in range(8):
        model(input_ids=INPUT_IDS).logits.sum().backward()
        model.base_model.update_and_allocate(step)
    assert config.rank_pattern
    export_adapter(model, tmp_path / "adapter", source)
    torch.testing.assert_close(logits(load_adapter(tiny_llama(), tmp_path / "adapter", source)), logits(model))


def test_a_setting_of_a_newer_peft_that_is_off_is_no_difference(adapter, source):
    settings(use_magic=False, magic_config=None)(adapter)
    load_adapter(tiny_llama(), adapter, source)


def test_what_is_loaded_is_what_was_read(adapter, source, monkeypatch):
    """A load that takes the tensors and drops them is found out."""
    monkeypatch.setattr("lit_semantic_peft.models.adapter_state.set_exported_tensors", lambda model, state: None)
    with pytest.raises(InputError, match="not as the model holds it: base_model"):
        load_adapter(tiny_llama(), adapter, source)


def test_what_peft_drops_on_the_way_is_loaded_all_the_same(adapter, source, monkeypatch):
    """As where transformers renames tensors of a Laguna's shared experts, which PEFT then does not find."""
    whole = exported_tensors(load_adapter(tiny_llama(), adapter, source))
    monkeypatch.setattr("lit_semantic_peft.models.peft_traits.set_peft_model_state_dict", lambda model, state: None)
    loaded = exported_tensors(load_adapter(tiny_llama(), adapter, source))
    assert all(torch.equal(value, loaded[name]) for name, value in whole.items())


def test_equal_tensors_differ_in_nothing():
    state = {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    assert differences(state, dict(state)) == []
    assert differences(state, {**state, "a": state["a"].half()}) == []
    assert differences(state, {}) == ["missing: a, b"]
