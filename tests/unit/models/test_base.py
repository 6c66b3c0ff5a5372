import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from experiments.sweep.families import tiny_config
from lit_semantic_peft.cache import cache_folder
from lit_semantic_peft.data import EncodingPlan
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import file_sha256, write_json
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.models import base_files as base_module
from lit_semantic_peft.models.base import num_positions
from lit_semantic_peft.models.base_files import find_base_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fixtures.models import byte_level_bpe


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_folder_is_used_as_it_is(folder):
    base = BaseModel(str(folder))
    assert (base.source.name, base.source.folder, base.source.note) == (str(folder), folder.resolve(), "")
    model = base.load()
    tokenizer = base.load_tokenizer()
    assert not model.training
    assert all(not p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == len(byte_level_bpe())
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert model(input_ids=ids).logits.isfinite().all()


def test_the_encoder_takes_what_the_folder_says_of_end_tokens_positions_and_dates(folder, caplog):
    base = BaseModel(str(folder))
    assert base.load_stop_ids() == (1,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert base.load_stop_ids() == (1, 7)
    encoder = encoder_of(base, EncodingPlan())
    assert (encoder.stop_ids, encoder.num_positions) == ((1, 7), 256)
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d') }}" + byte_level_bpe().chat_template)
    encoder_of(base, EncodingPlan())
    assert "prints the day's date" not in caplog.text
    in_chat = EncodingPlan("chat", chat_template_kwargs={"enable_thinking": False})
    assert encoder_of(base, in_chat).chat_template_kwargs == {"enable_thinking": False}
    assert caplog.text.count("prints the day's date") == 1
    (folder / "generation_config.json").unlink()
    assert base.load_stop_ids() == (1,)


def test_a_relative_folder_and_home_are_found(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert find_base_model("model").folder == folder.resolve()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_base_model("~/model").folder == folder.resolve()


def test_the_fingerprint_names_content_not_place(folder, tmp_path):
    first = find_base_model(str(folder)).fingerprint
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "copy"))
    assert find_base_model(str(elsewhere)).fingerprint == first
    (elsewhere / "README.md").write_text("A model card changes no number.")
    assert find_base_model(str(elsewhere)).fingerprint == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_the_fingerprint_changes_with_every_file_that_changes_a_number(folder, name):
    first = find_base_model(str(folder)).fingerprint
    assert (folder / name).is_file()
    flip_a_byte(folder / name)
    assert find_base_model(str(folder)).fingerprint != first


def test_a_file_is_read_for_its_fingerprint_once(folder, monkeypatch):
    read = []
    monkeypatch.setattr(base_module, "file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    first = find_base_model(str(folder)).fingerprint
    assert find_base_model(str(folder)).fingerprint == first
    assert sorted(read) == sorted(set(read))
    read.clear()
    flip_a_byte(folder / "config.json")
    assert find_base_model(str(folder)).fingerprint != first
    assert read == ["config.json"]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_weights_have_the_dtype_that_was_asked_for(folder, dtype, expected):
    model = BaseModel(str(folder), dtype=dtype).load()
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    exact = BaseModel(str(folder)).load()
    for left, right in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(left.float(), right, atol=1e-2, rtol=1e-2)


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(
        InputError, match=r"`base_model.dtype` must be one of float32, bfloat16, float16, nf4, int8, got 'int4'"
    ):
        BaseModel(str(folder), dtype="int4").load()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "./models/typo", "what is this?", "a/b/c"])
def test_an_unknown_name_fails_at_once(name, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("another try"))
    with pytest.raises(InputError, match=r"`base_model` .* is no local folder.*Without network use `smollm2-135m`"):
        find_base_model(name)


def test_paths_that_hold_no_model_are_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"folder without config\.json"):
        find_base_model(str(tmp_path / "empty"))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InputError, match="is a file but not a GGUF file"):
        find_base_model(str(tmp_path / "weights.bin"))
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(InputError, match="no causal language model in"):
        BaseModel(str(folder)).load()


def test_a_package_that_the_weights_need_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(InputError, match=r"needs a package that is not installed: .*`pip install optimum`"):
        BaseModel(str(folder)).load()


@pytest.mark.parametrize("damage", ["truncated", "missing", "another shape"])
def test_damaged_weights_are_refused(folder, damage):
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "missing":
        weights.unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(InputError, match="no causal language model in"):
        BaseModel(str(folder)).load()


def test_weights_that_are_not_there_are_named_and_not_drawn_at_random(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"incomplete; missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        BaseModel(str(folder)).load()


@pytest.mark.parametrize("named", ["../other/model.safetensors", "sub/model.safetensors", "/other.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, named):
    index = folder / "model.safetensors.index.json"
    write_json(index, {"metadata": {}, "weight_map": {"a": "model.safetensors"}})
    assert find_base_model(str(folder)).folder == folder.resolve()
    write_json(index, {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": named}})
    with pytest.raises(InputError, match=r"`weight_map` names '.*', which lies outside this folder\. Copy"):
        find_base_model(str(folder))


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_folder_without_usable_tokenizer_is_refused(folder, damage):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if damage == "broken":
        (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="no tokenizer in"):
        BaseModel(str(folder)).load_tokenizer()


@pytest.mark.parametrize("damage", ["byte", "missing", "manifest"])
def test_a_damaged_converted_file_is_refused(folder, damage):
    write_json(folder / "checksums.json", {"model.safetensors": file_sha256(folder / "model.safetensors")})
    base = BaseModel(str(folder))
    base.load()
    if damage == "byte":
        flip_a_byte(folder / "model.safetensors")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "checksums.json").write_text("{")
    with pytest.raises(InputError, match=r"is damaged.*Delete .*; it is made anew"):
        base.load()


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("LIT_SEMANTIC_PEFT_CACHE")
    assert cache_folder() == Path("/xdg/lit-semantic-peft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lit-semantic-peft"


def test_a_conversion_draws_nothing_from_the_random_generator(gguf_file):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    find_base_model(str(gguf_file))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gguf_file_is_converted_once(gguf_file, tiny_model, monkeypatch):
    base = BaseModel(str(gguf_file))
    assert base.source.folder.is_relative_to(cache_folder())
    assert "dequantised weights of tiny.gguf" in base.source.note
    assert [path.name for path in base.source.folder.parent.iterdir()] == [base.source.folder.name]
    converted, original = base.load(), BaseModel(str(tiny_model)).load()
    ids = torch.tensor([base.load_tokenizer()("The capital of France is")["input_ids"]])
    assert ids.tolist() == [byte_level_bpe()("The capital of France is")["input_ids"]]
    torch.testing.assert_close(converted(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-4, rtol=1e-4)

    def not_again(*_):
        raise AssertionError("converted twice")

    with monkeypatch.context() as patch:
        patch.setattr(base_module, "_convert_gguf", not_again)
        assert find_base_model(str(gguf_file)) == base.source
    # A folder without checksums is a leftover of something that went wrong: it is made anew.
    (base.source.folder / "checksums.json").unlink()
    flip_a_byte(base.source.folder / "model.safetensors")
    find_base_model(str(gguf_file))
    base.load()


@pytest.mark.parametrize("content", ["empty", "text", "magic", "truncated"])
def test_a_broken_gguf_file_is_refused_and_leaves_nothing(gguf_file, content):
    whole = gguf_file.read_bytes()
    broken = {
        "empty": b"",
        "text": b"hello " * 50,
        "magic": b"GGUF" + b"\xff" * 200,
        "truncated": whole[: len(whole) // 3],
    }
    gguf_file.write_bytes(broken[content])
    with pytest.raises(InputError, match=r"`base_model` .*tiny.gguf' cannot be converted"):
        find_base_model(str(gguf_file))
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []
    assert list((cache_folder() / "models").iterdir()) == []


def test_a_type_of_torch_is_refused_by_its_name_and_a_path_is_a_folder(folder):
    with pytest.raises(InputError, match=r"got torch\.bfloat16; write 'bfloat16'$"):
        BaseModel(str(folder), dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"got 'int4'$"):
        BaseModel(str(folder), dtype="int4")
    with pytest.raises(InputError, match=r"`base_model.name`: expected a text, got "):
        BaseModel(folder)
    assert BaseModel.of(folder) == BaseModel(str(folder))


@pytest.mark.parametrize("pad_token_id", [0, 3])
@pytest.mark.parametrize(
    "family",
    [
        *("camembert", "data2vec-text", "prophetnet", "roberta", "roberta-prelayernorm", "xlm-roberta"),
        *("xlm-roberta-xl", "xmod", "gpt2", "opt", "biogpt"),
    ],
)
def test_the_longest_text_is_as_long_as_the_table_of_positions_allows(family, pad_token_id):
    """RoBERTa and its like count positions from the padding token's number on."""
    config = tiny_config(family)
    config.pad_token_id = pad_token_id
    model, most = AutoModelForCausalLM.from_config(config).eval(), num_positions(config)
    ids = torch.full((1, most + 1), 7)
    with torch.no_grad():
        assert model(input_ids=ids[:, 1:], use_cache=False).logits.shape[1] == most
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids, use_cache=False)
