"""Adapters made to mislead an audit, to stop it, or to make it read more than the adapter."""

import json
import shutil

import pytest
import torch
from lit_semantic_peft.adapters import KnowledgeMoEConfig
from lit_semantic_peft.audit import inspect
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter, peft_bounds
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fixtures.adapters import CONFIG, WEIGHTS, settings, tensors


def of_factors(change):
    return tensors(lambda state: {name: change(value) for name, value in state.items()})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (settings(rank_pattern={"q_proj": 0}), "the scale of .*q_proj cannot be computed: division by zero"),
        (settings(rank_pattern=["q_proj"]), "the scale of .* cannot be computed"),
        (settings(rank_pattern={"(q_proj": 2}), "the scale of .* cannot be computed: missing"),
        (settings(lora_alpha="8"), "the scale of .* cannot be computed: unsupported operand"),
        (settings(lora_alpha=1e300), "the update of .* is beyond the numbers of a computer, at a scale of"),
        (of_factors(torch.sum), r"the factors of .*, of the shapes \(\) and \(\), are none of a low-rank update"),
        (of_factors(lambda value: value[:, :0]), r"of the shapes \(4, 0\) and \(\d+, 0\)"),
        (of_factors(lambda value: value[:3]), r"of the shapes \(3, \d+\) and \(3, 4\), are none of"),
    ],
    ids=["rank_0", "no_mapping", "no_pattern", "text", "overflow", "single_numbers", "no_columns", "no_pair"],
)
def test_factors_that_are_none_are_refused(make_adapter, damage, said):
    folder = make_adapter()
    damage(folder)
    with pytest.raises(InputError, match=said):
        inspect(folder, weights_only=True)


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_forever_does_not_stop_the_statistics(make_adapter, monkeypatch, setting):
    monkeypatch.setattr(peft_bounds, "SECONDS_FOR_PATTERNS", 1.0)
    folder = make_adapter()
    settings(**{setting: {"(.*.*.*.*.*.*.*.*)*z": 3}})(folder)
    with pytest.raises(InputError, match=r"matching .* takes longer than 1 seconds"):
        inspect(folder, weights_only=True)


def test_what_stays_with_the_adapter_off_is_not_compared_with_itself(make_adapter, tiny_model, tmp_path):
    folder = make_adapter()
    settings(init_lora_weights="pissa")(folder)
    with pytest.raises(InputError, match="`init_lora_weights: pissa` changes the base model itself"):
        inspect(folder, num_builtin=2)
    assert inspect(folder, weights_only=True).remarks == (
        "`init_lora_weights: pissa` changes the base model as well, which the statistics of the weights do not cover.",
    )
    # A base model with biases, of which the adapter moves one by far: with the adapter off it is still moved.
    base = AutoModelForCausalLM.from_pretrained(tiny_model, attention_bias=True)
    base.save_pretrained(tmp_path / "biased")
    for file in tiny_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "biased")
    model = get_peft_model(base, LoraConfig(r=2, bias="all", target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "moved")
    state = load_file(tmp_path / "moved" / WEIGHTS)
    biases = [name for name in state if name.endswith("bias")]
    assert biases
    save_file({name: value + 10.0 * (name in biases) for name, value in state.items()}, tmp_path / "moved" / WEIGHTS)
    with pytest.raises(InputError, match="`bias: all` changes the base model itself, also with the adapter off"):
        inspect(tmp_path / "moved", base_model=tmp_path / "biased", num_builtin=2)


def test_another_model_beside_the_base_is_not_loaded(tiny_model, tmp_path):
    folder = tmp_path / "shadow"
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / WEIGHTS)
    about = {"peft_type": "SHADOW", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(tiny_model)}
    (folder / CONFIG).write_text(json.dumps({**about, "shadow_model": str(tiny_model)}))
    with pytest.raises(InputError, match="`shadow_model` makes peft load another model that the adapter names"):
        inspect(folder, num_builtin=2)


def test_a_base_model_that_the_adapter_names_is_no_pickle_beside_some_safetensors(make_adapter, tiny_model, tmp_path):
    folder, base = make_adapter(), tmp_path / "base"
    shutil.copytree(tiny_model, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").rename(base / "other.safetensors")
    (folder / "lit_semantic_peft.json").write_text(json.dumps({"base_model": str(base)}))
    with pytest.raises(InputError, match="which the adapter names, is no safetensors"):
        inspect(folder, num_builtin=2)


@pytest.mark.parametrize(
    ("name", "said"),
    [(5, "`base_model` must be a text, got 5"), (["x"], "must be a text"), ("a" * 300, "could not be loaded")],
    ids=["number", "list", "long"],
)
def test_a_base_model_that_has_no_name_is_refused(make_adapter, name, said):
    folder = make_adapter()
    (folder / "lit_semantic_peft.json").write_text(json.dumps({"base_model": name}))
    with pytest.raises(InputError, match=said):
        inspect(folder, num_builtin=2)


def test_what_acts_on_some_names_alone_says_which(make_adapter, tiny_model, tmp_path):
    names = [f"Zorvex {number}" for number in range(12)]
    facts = [Fact(name, f"The river of {name} is the", "Rhine", subject=name) for name in names]
    base = BaseModel(str(tiny_model))
    config = KnowledgeMoEConfig(r=2, target_modules=["down_proj"])
    config.learn_names(facts, base.load_tokenizer())
    model = attach_adapter(base.load(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    export_adapter(model, tmp_path / "experts", base.source)
    found = inspect(tmp_path / "experts", facts=facts, num_builtin=2)
    assert found.neutral.kl.mean == found.builtin.flipped.mean == 0
    assert found.given.flipped.mean > 0
    (remark,) = found.remarks
    assert "It acts only on prompts that name one of 12 names: 'Zorvex 0', 'Zorvex 1', " in remark
    assert "'Zorvex 9', ..." in remark
    assert "Zorvex 10" not in remark
    gated = make_adapter()
    table = {"format": 1, "match": "subjects", "names": ["Zorvex\x1b[2J"]}
    (gated / "subject_gate.json").write_text(json.dumps(table))
    assert inspect(gated, weights_only=True).remarks == (
        "It has a gate, and was measured without it: with the gate it acts only on prompts that name one of 1 names: "
        "'Zorvex\\x1b[2J'.",
    )
