import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from architectures import ADAPTERS, trained
from lit_semantic_peft.adapters import FLoRAConfig
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import (
    BaseModel,
    BaseModelSource,
    adapter_state_dict,
    attach,
    attach_adapter,
    export_adapter,
    export_merged,
    load_adapter,
    load_adapter_state_dict,
)
from lit_semantic_peft.models.export import BASE_FILE, _model_card
from lit_semantic_peft.models.peft_traits import traits_of
from lit_semantic_peft.models.targets import linear_module_names
from lit_semantic_peft.reports.export import export_run
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Zamba2Config

from fixtures.models import save_tiny_model, tiny_gpt2, tiny_llama
from fixtures.releases import of_this_peft

WEIGHT_ADAPTERS = {
    "lora": lambda: LoraConfig(r=3, target_modules="all-linear"),
    "dora": lambda: LoraConfig(r=3, target_modules=["q_proj", "down_proj"], use_dora=True),
    "adalora": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=20, tinit=2, tfinal=4, target_modules=["q_proj"]),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
PROMPT_ADAPTERS = {name: ADAPTERS[name] for name in ("prompt_tuning", "prefix_tuning", "p_tuning")}
PROMPT_ADAPTERS["projected_prefix"] = lambda: PrefixTuningConfig(
    num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
)
EVERY_ADAPTER = WEIGHT_ADAPTERS | PROMPT_ADAPTERS
INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


@pytest.fixture
def source(tmp_path):
    return BaseModelSource(
        "./my-base", tmp_path / "base", "Somebody/Some-Base", "f" * 32, "Trained on a dequantised base."
    )


class Numbers:
    """A tokenizer of models that read numbers."""

    def __call__(self, text):
        return {"input_ids": [2 + ord(letter) % 50 for letter in text]}

    def save_pretrained(self, folder):
        pass


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=INPUT_IDS).logits


@pytest.mark.parametrize("name", EVERY_ADAPTER)
def test_attach_trains_the_adapter_alone_and_in_float32(name):
    base = tiny_llama().to(torch.bfloat16)
    num_base = sum(1 for _ in base.parameters())
    model = attach_adapter(base, EVERY_ADAPTER[name]())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    assert {parameter.dtype for parameter in trainable} == {torch.float32}
    assert not any("ranknum" in name for name, one in model.named_parameters() if one.requires_grad)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert sum(parameter.dtype == torch.bfloat16 for parameter in frozen) == num_base
    assert str(model.active_peft_config.task_type) in ("CAUSAL_LM", "TaskType.CAUSAL_LM")
    assert adapter_state_dict(model)


def test_what_no_checkpoint_would_hold_is_not_trained(monkeypatch):
    def without_one(model):
        state = adapter_state_dict(model)
        return {name: value for name, value in state.items() if "1.self_attn.q_proj.lora_A" not in name}

    monkeypatch.setattr(attach, "adapter_state_dict", without_one)
    with pytest.raises(InputError, match=r"trains .*1\.self_attn\.q_proj\.lora_A.*neither saves nor exports"):
        attach_adapter(tiny_llama(), WEIGHT_ADAPTERS["lora"]())


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["nope"]),
        LoraConfig(target_modules=["q_proj", "nope"]),
        LoraConfig(target_modules="nope.*"),
        IA3Config(target_modules=["nope"], feedforward_modules=[]),
        AdaLoraConfig(total_step=10, target_modules=["nope"]),
    ],
    ids=["lora", "one_of_two", "regex", "ia3", "adalora"],
)
def test_target_modules_that_match_nothing_say_what_would_match(config):
    with pytest.raises(InputError, match=r"`target_modules`.*nope.*q_proj, up_proj, v_proj, or `all-linear`") as caught:
        attach_adapter(tiny_llama(), config)
    assert "lm_head" not in str(caught.value)
    for name in linear_module_names(tiny_llama()):
        attach_adapter(tiny_llama(), LoraConfig(target_modules=[name]))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
        *(({"kasa_config": config}, "kasa_config") for config in of_this_peft("KasaConfig")),
    ],
)
def test_what_changes_the_base_model_itself_is_refused(settings, named):
    """PEFT takes all of them, and the model with the adapter off is then another one than before."""
    with pytest.raises(InputError, match=f"`peft_config` with `{named}` cannot be used"):
        attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"], **settings))


def test_a_copied_module_is_trained_in_float32_or_refused():
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = attach_adapter(tiny_llama(), LoraConfig(**config))
    assert any("modules_to_save" in name for name, one in model.named_parameters() if one.requires_grad)
    with pytest.raises(InputError, match=r"trains .*modules_to_save.* bfloat16.*`model\.base_model\.dtype: float32`"):
        attach_adapter(tiny_llama().to(torch.bfloat16), LoraConfig(**config))


def test_other_architectures_name_their_own_modules():
    assert linear_module_names(tiny_gpt2()) == ["c_attn", "c_fc", "c_proj"]
    with pytest.raises(InputError, match="What would match: c_attn, c_fc, c_proj"):
        attach_adapter(tiny_gpt2(), LoraConfig(target_modules=["q_proj"]))


def test_the_same_seed_draws_the_same_adapter():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(adapter_state_dict(attach_adapter(tiny_llama(), WEIGHT_ADAPTERS["lora"]())))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("name", EVERY_ADAPTER)
def test_adapter_state_goes_into_another_model_and_back(name):
    left = trained(tiny_llama(), EVERY_ADAPTER[name](), seed=1)
    right = trained(tiny_llama(), EVERY_ADAPTER[name](), seed=2)
    state = {key: value.clone() for key, value in adapter_state_dict(left).items()}
    assert (logits(left) - logits(right)).abs().max() > 1e-3
    load_adapter_state_dict(right, state)
    torch.testing.assert_close(logits(right), logits(left))
    after = adapter_state_dict(right)
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)


def spoil(state, how):
    first, second = sorted(state)[:2]
    spoiled = dict(state)
    if how in ("missing", "all"):
        del spoiled[first]
    if how in ("unexpected", "all"):
        spoiled["base_model.model.lm_head.lora_A.weight"] = torch.zeros(1)
    if how in ("of another shape", "all"):
        spoiled[second] = torch.zeros(2, 2)
    return spoiled, {
        "missing": f"missing: {first}",
        "unexpected": "unexpected: base_model.model.lm_head.lora_A.weight",
        "of another shape": f"of another shape: {second} (2, 2) instead of {tuple(state[second].shape)}",
    }


@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape", "all"])
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(how):
    model = trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]())
    before = {key: value.clone() for key, value in adapter_state_dict(model).items()}
    state, messages = spoil({key: value + 1 for key, value in before.items()}, how)
    with pytest.raises(InputError) as caught:
        load_adapter_state_dict(model, state)
    for label, message in messages.items():
        assert (message in str(caught.value)) == (how in (label, "all"))
    after = adapter_state_dict(model)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_many_missing_keys_are_counted():
    model = trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]())
    with pytest.raises(InputError, match=f"and {len(adapter_state_dict(model)) - 5} more"):
        load_adapter_state_dict(model, {})


@pytest.mark.parametrize("name", EVERY_ADAPTER)
def test_an_exported_adapter_serves_what_was_trained(name, source, tmp_path):
    model = trained(tiny_llama(), EVERY_ADAPTER[name]())
    export_adapter(model, tmp_path / "adapter", source)
    served = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    torch.testing.assert_close(logits(served), logits(model), atol=1e-5, rtol=1e-5)
    base_logits = logits(tiny_llama())
    assert (logits(served)[:, -1] - base_logits[:, -1]).abs().max() > 1e-2, "the base was served"
    torch.testing.assert_close(logits(load_adapter(tiny_llama(), tmp_path / "adapter", source)), logits(served))


def test_an_export_from_training_is_no_random_sample(source, tmp_path):
    config = PromptEncoderConfig(
        num_virtual_tokens=3,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=8,
        encoder_num_layers=2,
        encoder_dropout=0.5,
    )
    model = trained(tiny_llama(), config)
    expected = logits(model)
    model.train()
    export_adapter(model, tmp_path / "adapter", source)
    assert model.training
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")), expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_bias": True}, "because the base layer has no bias"),
        ({"alora_invocation_tokens": [5, 6]}, "aLoRA does not support safe merging"),
        ({}, "transformers cannot write the quantised base once it is changed"),
    ],
)
def test_what_cannot_be_merged_says_why(settings, said, tmp_path, monkeypatch):
    def of_4_bits(*_, **__):  # as transformers does where the weights were quantised
        raise NotImplementedError

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", of_4_bits)
    model = attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"], **settings))
    with pytest.raises(InputError, match=rf"cannot be merged into the base weights: .*{said}\. Export it without"):
        export_merged(model, Numbers(), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_answers_otherwise_is_not_written(tiny_model, tmp_path, monkeypatch):
    model = trained(AutoModelForCausalLM.from_pretrained(tiny_model), WEIGHT_ADAPTERS["lora"]())
    monkeypatch.setattr(type(model.base_model), "merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(InputError, match=r"3 prompts would be off by [0-9.]+ of their norm.* float32 explains"):
        export_merged(model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_share_their_weights_are_not_merged(tmp_path):
    """Zamba2's blocks of attention are one, under adapters of their own in each layer."""
    kinds = ["mamba", "hybrid", "mamba", "hybrid"]
    config = Zamba2Config(
        **{"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48, "chunk_size": 8},
        **{"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8, "num_attention_heads": 4, "num_mem_blocks": 1},
        layers_block_type=kinds,
        hybrid_layer_ids=[1, 3],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = trained(AutoModelForCausalLM.from_config(config), LoraConfig(r=3, target_modules=["gate_up_proj"]))
    with pytest.raises(InputError, match="logits on 3 prompts would be off"):
        export_merged(model, Numbers(), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_one_end_of_a_tied_model_is_not_merged(target, tmp_path):
    model = trained(tiny_llama(), LoraConfig(target_modules=["q_proj", target]))
    with pytest.raises(InputError, match="cannot be merged: it changes the embedding or the output projection"):
        export_merged(model, Numbers(), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_exported_folder_names_its_base(source, tmp_path):
    folder = tmp_path / "a" / "adapter"
    model = trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]())
    model.active_peft_config.base_model_name_or_path = "somewhere/local"
    export_adapter(model, folder, source, about="Twelve facts about towns.")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Somebody/Some-Base"
    assert model.active_peft_config.base_model_name_or_path == "somewhere/local"
    assert json.loads((folder / BASE_FILE).read_text()) == {"base_model": "./my-base", "base_fingerprint": "f" * 32}
    card = (folder / "README.md").read_text()
    for text in ("base_model: Somebody/Some-Base", "# LORA adapter", "Twelve facts about towns.", source.note):
        assert text in card
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.md", "adapter_config.json", "adapter_model.safetensors", BASE_FILE]
    )
    assert folder.stat().st_mode & 0o755 == 0o755


@pytest.mark.parametrize("note", ["", "Trained on other weights than those of this name."])
def test_what_the_model_card_says_loads_the_adapter(source, tmp_path, tiny_model, note):
    model = trained(AutoModelForCausalLM.from_pretrained(tiny_model), WEIGHT_ADAPTERS["lora"]())
    export_adapter(model, tmp_path / "adapter", replace(source, public_name=str(tiny_model), note=note))
    code = (tmp_path / "adapter" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert ("BaseModel" in code) == bool(note)
    names = {}
    exec(code.replace("FOLDER", str(tmp_path / "adapter")), names)
    torch.testing.assert_close(logits(names["model"]), logits(model))


def test_the_card_of_a_packaged_model_and_of_an_adapter_of_ours(source, tmp_path):
    packaged = replace(source, name="smollm2-135m", dtype="nf4")
    export_adapter(trained(tiny_llama(), FLoRAConfig(target_modules=["q_proj"])), tmp_path / "adapter", packaged)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "import lit_semantic_peft.adapters  #" in card
    assert "PeftModel.from_pretrained(BaseModel('smollm2-135m', dtype='nf4').load(), \"FOLDER\")" in card


def test_an_export_that_fails_leaves_the_old_folder(source, tmp_path, monkeypatch):
    model = trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]())
    export_adapter(model, tmp_path / "out" / "adapter", source)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "adapter").iterdir()}

    def disk_full(folder, **_):
        (folder / "adapter_config.json").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save_pretrained", disk_full)
    with pytest.raises(InputError, match="no space left"):
        export_adapter(model, tmp_path / "out" / "adapter", source)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "adapter").iterdir()} == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]


def test_an_export_replaces_the_folder_as_a_whole(source, tmp_path):
    folder = tmp_path / "adapter"
    export_adapter(trained(tiny_llama(), WEIGHT_ADAPTERS["lora"](), seed=1), folder, source)
    (folder / "leftover.bin").touch()
    newer = trained(tiny_llama(), WEIGHT_ADAPTERS["lora"](), seed=2)
    export_adapter(newer, folder, source)
    assert not (folder / "leftover.bin").exists()
    torch.testing.assert_close(logits(load_adapter(tiny_llama(), folder, source)), logits(newer))


def test_folders_that_hold_no_fitting_adapter_are_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"holds no adapter \(adapter_config.json is missing\)"):
        load_adapter(tiny_llama(), tmp_path, source)
    export_adapter(trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]()), tmp_path / "adapter", source)
    other = replace(source, name="gpt2", public_name="gpt2", fingerprint="0" * 32)
    said = r"trained on the base model './my-base' and does not fit 'gpt2': .*Use `--model.base_model ./my-base`"
    with pytest.raises(InputError, match=said):
        load_adapter(tiny_gpt2(), tmp_path / "adapter", other)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_attaching_and_loading_say_nothing_that_a_user_cannot_act_on(source, tmp_path):
    export_adapter(attach_adapter(tiny_llama(), WEIGHT_ADAPTERS["lora"]()), tmp_path / "adapter", source)
    load_adapter(tiny_llama(), tmp_path / "adapter", source)


def test_an_adapter_of_other_weights_is_loaded_with_a_warning(source, tmp_path, caplog):
    export_adapter(trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]()), tmp_path / "adapter", source)
    load_adapter(tiny_llama(), tmp_path / "adapter", source)
    assert not caplog.text
    load_adapter(tiny_llama(), tmp_path / "adapter", replace(source, name="./newer", fingerprint="0" * 32))
    assert "trained on the base model './my-base'" in caplog.text
    assert "./newer" in caplog.text
    caplog.clear()
    (tmp_path / "adapter" / BASE_FILE).unlink()  # as another tool writes it: nothing is known of the weights
    load_adapter(tiny_llama(), tmp_path / "adapter", replace(source, fingerprint="0" * 32))
    assert not caplog.text


@pytest.mark.parametrize("name", WEIGHT_ADAPTERS)
def test_a_merged_model_is_plain_and_says_the_same(name, tiny_model, tmp_path):
    model = trained(AutoModelForCausalLM.from_pretrained(tiny_model), WEIGHT_ADAPTERS[name]())
    expected = logits(model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    export_merged(model, tokenizer, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in key or "base_layer" in key for key in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-5)
    assert (logits(AutoModelForCausalLM.from_pretrained(tiny_model)) - expected).abs().max() > 1e-2
    text = "The capital of France is"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "kind"), [("prompt_tuning", "PROMPT_TUNING"), ("prefix_tuning", "PREFIX_TUNING"), ("p_tuning", "P_TUNING")]
)
def test_virtual_tokens_cannot_be_merged(name, kind, tmp_path):
    with pytest.raises(InputError, match=f"type {kind} cannot be merged.*without --merge"):
        export_merged(trained(tiny_llama(), EVERY_ADAPTER[name]()), Numbers(), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_orthogonality_penalty_is_what_peft_adds_itself():
    model = trained(tiny_llama(), WEIGHT_ADAPTERS["adalora"]())
    penalty = traits_of(model).penalty(model)
    labels = INPUT_IDS.clone()
    with_penalty = model(input_ids=INPUT_IDS, labels=labels).loss
    without = model.base_model.model(input_ids=INPUT_IDS, labels=labels).loss
    torch.testing.assert_close(penalty, with_penalty - without, atol=1e-5, rtol=1e-5)
    assert penalty > 0.05
    penalty.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n)


def test_other_adapters_have_no_orthogonality_penalty():
    lora = trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]())
    assert traits_of(lora).penalty(lora) is None
    config = WEIGHT_ADAPTERS["adalora"]()
    config.orth_reg_weight = 0.0
    without = attach_adapter(tiny_llama(), config)
    assert traits_of(without).penalty(without) is None


def test_a_run_is_merged_into_the_commit_that_it_was_trained_on(tmp_path, monkeypatch):
    commits = {name: save_tiny_model(tmp_path / name, seed) for seed, name in enumerate(("moved", "trained"))}
    branches = {None: commits["moved"], "stable": commits["trained"], **commits}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: branches[revision])
    base = BaseModel("Somebody/Some-Base", "stable")
    model = trained(base.load(), WEIGHT_ADAPTERS["lora"]())
    export_adapter(model, tmp_path / "adapter", base.source)
    export_run(tmp_path / "adapter", tmp_path / "merged", merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(model))


def test_half_an_adapter_is_not_exported(tiny_model, tmp_path, caplog):
    base = BaseModel(str(tiny_model))
    export_adapter(trained(base.load(), WEIGHT_ADAPTERS["lora"]()), tmp_path / "adapter", base.source)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    save_file(dict(sorted(state.items())[::2]), weights)
    for merge in (False, True):
        with pytest.raises(InputError, match=r"does not fit .*: missing: base_model"):
            export_run(tmp_path / "adapter", tmp_path / "out", merge=merge)
    assert not (tmp_path / "out").exists()
    # Without the base model nothing can be compared, which is said.
    about = {"base_model": "./nowhere", "base_fingerprint": "0" * 32}
    (tmp_path / "adapter" / BASE_FILE).write_text(json.dumps(about))
    export_run(tmp_path / "adapter", tmp_path / "out")
    assert "not compared with its base model, which was not found" in caplog.text
    weights.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        export_run(tmp_path / "adapter", tmp_path / "again")


def test_an_adapter_without_a_base_model_asks_for_its_name(tiny_model, tmp_path):
    trained(tiny_llama(), WEIGHT_ADAPTERS["lora"]()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"does not name the base model .* `--base_model`"):
        export_run(tmp_path / "adapter", tmp_path / "out", merge=True)


@pytest.mark.parametrize(
    "name", ["owner/model", "runs/a: b #1", "- x", "line\nlicense: mit", "{a}", "yes", "12", "Łódź", "---"]
)
def test_the_fields_of_a_model_card_are_what_they_were(name):
    card = _model_card(BaseModelSource(name, Path("x"), name, "f" * 32), "LORA", "", "")
    fields, body = card.removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(fields) == {
        "base_model": name, "library_name": "peft", "tags": ["lit-semantic-peft", "knowledge"]
    }  # fmt: skip
    assert body.split("\n")[1] == f"# LORA adapter for {' '.join(name.split())}"
