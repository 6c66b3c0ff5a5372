"""Adapters of strangers: applied wholly, or refused with the name of what differs, within bounds of time and memory."""

import json
import shutil
import time

import pytest
import torch
from architectures import trained
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModelSource, attach_adapter, export_adapter, load_adapter, peft_bounds
from lit_semantic_peft.models.adapter_state import differences
from peft import AdaLoraConfig, LoraConfig
from safetensors.torch import load_file, save_file

from fixtures.models import tiny_llama

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return BaseModelSource("./my-base", tmp_path_factory.mktemp("base"), "my-base", "f" * 32)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    export_adapter(trained(tiny_llama(), LoraConfig(r=3, target_modules=["q_proj", "down_proj"])), folder, source)
    return folder


@pytest.fixture
def adapter(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "adapter")


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=INPUT_IDS).logits


def tensors(change):
    """Damage that changes the dictionary of tensors."""

    def damage(folder):
        state = load_file(folder / WEIGHTS)
        save_file({name: value.clone() for name, value in change(state).items()}, folder / WEIGHTS)

    return damage


def one(change):
    return tensors(lambda state: {**state, FIRST: change(state[FIRST])})


def settings(**changed):
    """Damage that changes the configuration; NaN and infinity are written as Python writes them."""

    def damage(folder):
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps({**found, **changed}), encoding="utf-8")

    return damage


def text(name, written):
    """Damage that writes a setting's value as it is, such as a number that Python would not write."""

    def damage(folder):
        settings(**{name: "HERE"})(folder)
        found = (folder / CONFIG).read_text(encoding="utf-8")
        (folder / CONFIG).write_text(found.replace('"HERE"', written), encoding="utf-8")

    return damage


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def under_a_wrong_prefix(state):
    return {name.removeprefix("base_model."): value for name, value in state.items()}


NOT_WHOLE = {
    "wrong_prefix": (tensors(under_a_wrong_prefix), ["missing: base_model.model", "and 3 more", "unexpected: model."]),
    "half": (tensors(lambda s: dict(sorted(s.items())[::2])), ["missing: ", "layers.0.mlp.down_proj.lora_B.weight"]),
    "two": (tensors(lambda s: dict(sorted(s.items())[:2])), ["missing: ", "and 1 more"]),
    "none": (tensors(lambda s: {}), ["missing: ", "and 3 more"]),
    "surplus_layer": (
        tensors(lambda s: s | {FIRST.replace("layers.0", "layers.7"): s[FIRST]}),
        ["unexpected: ", "layers.7.self_attn"],
    ),
    "shape": (one(lambda value: value[:2]), [f"of another shape: {FIRST} (2, 32) instead of (3, 32)"]),
    "integers": (one(lambda value: value.int()), [f"of another type: {FIRST} int32 instead of float32"]),
    "doubles": (one(lambda value: value.double()), [f"of another type: {FIRST} float64 instead of float32"]),
    "nan": (one(lambda value: value * float("nan")), [f"not finite: {FIRST}"]),
    "infinite": (one(lambda value: value / 0), [f"not finite: {FIRST}"]),
    "another_rank": (settings(r=4), ["of another shape: ", "(3, 32) instead of (4, 32)"]),
    "fewer_targets": (settings(target_modules=["q_proj"]), ["unexpected: ", "down_proj.lora_A.weight"]),
    "other_targets": (settings(target_modules=["nope"]), ["matches no module of the base model"]),
    "empty_file": (content(WEIGHTS, b""), [WEIGHTS, "cannot be read"]),
    "cut_file": (cut, [WEIGHTS, "cannot be read"]),
    "no_file": (lambda folder: (folder / WEIGHTS).unlink(), [f"has no weights ({WEIGHTS} is missing)"]),
    "nan_alpha": (settings(lora_alpha=float("nan")), [CONFIG, "NaN is no finite number"]),
    "infinite_alpha": (text("lora_alpha", "1e999"), [CONFIG, "1e999 is no finite number"]),
    "long_number": (text("r", "9" * 5000), [CONFIG, "cannot be read"]),
    "huge_rank": (settings(r=10**9), ["1000000000 x 32 numbers", "more than four times the base model's"]),
    "negative_rank": (settings(r=-1), ["`r` should be a positive integer value but the value passed is -1"]),
    "text_for_a_number": (settings(r="8"), ["not supported between instances of 'str' and 'int'"]),
    "other_type": (settings(peft_type="IA3"), ["the installed peft does not know", "`lora_alpha`", "of IA3"]),
    "unknown_type": (settings(peft_type="LORRA"), ["`peft_type` must be one of", "got 'LORRA'"]),
    "unknown_setting": (
        settings(use_magic=True, peft_version="9.0"),
        ["does not know `use_magic` of LORA", "peft 9.0"],
    ),
    "other_task": (settings(task_type="SEQ_CLS"), ["`task_type` must be CAUSAL_LM or left out"]),
    "needs_tasks": (content(CONFIG, b'{"peft_type": "POLY"}'), ["PolyConfig needs the number of a task"]),
    "broken_config": (content(CONFIG, b'{"r": 8'), [CONFIG, "cannot be read"]),
    "config_of_another_kind": (content(CONFIG, b"[]"), [CONFIG, "holds list, not a JSON object"]),
    "config_not_utf8": (content(CONFIG, b'{"r": "\xff"}'), [CONFIG, "cannot be read"]),
    "broken_base_file": (content("lit_semantic_peft.json", b"{"), ["lit_semantic_peft.json", "cannot be read"]),
    "long_pattern": (
        settings(target_modules="x" * 20_000),
        ["`target_modules` holds a text of over 10,000 characters"],
    ),
    "many_names": (settings(target_modules=[f"x{i}" for i in range(9_000)]), ["holds 9,000 names", "33 modules"]),
}


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
    """A PEFT that takes the tensors and drops them is found out."""
    monkeypatch.setattr("lit_semantic_peft.models.adapter_state.set_peft_model_state_dict", lambda model, state: None)
    with pytest.raises(InputError, match="not as the model holds it: base_model"):
        load_adapter(tiny_llama(), adapter, source)


def test_equal_tensors_differ_in_nothing():
    state = {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    assert differences(state, dict(state)) == []
    assert differences(state, {**state, "a": state["a"].half()}) == []
    assert differences(state, {}) == ["missing: a, b"]
