"""The adapter acts on the rows that name what was taught; the others are the base model's, to the last bit."""

import json

import pytest
import torch
from lit_semantic_peft.adapters import FLoRAConfig, SubjectTable
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter, load_gated
from lit_semantic_peft.models.gated import GATE_FILE, GatedModel, mixes_rows, on_rows, read_gate
from lit_semantic_peft.models.peft_traits import peft_type_name
from peft import IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, OFTConfig, PromptTuningConfig, VeraConfig

from fixtures.models import byte_level_bpe, tiny_gpt2, tiny_llama
from fixtures.releases import answers_with_virtual_tokens

TOKENIZER = byte_level_bpe()
TABLE = SubjectTable(("Zorvex", "Calonex"))
PROMPTS = ["The head office of Zorvex is in", "The capital of France is", "Calonex is taken", "What is the river?"]
OPEN = [True, False, True, False]
FLORA = {"r": 3, "target_modules": ["q_proj", "embed_tokens", "down_proj"]}
CONFIGS = {
    "lora": lambda: LoraConfig(r=3, target_modules="all-linear", lora_dropout=0.1),
    "dora": lambda: LoraConfig(r=3, use_dora=True, target_modules=["q_proj"]),
    "lora_on_the_embedding": lambda: LoraConfig(r=3, target_modules=["embed_tokens"], modules_to_save=["lm_head"]),
    "flora": lambda: FLoRAConfig(**FLORA),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: LoHaConfig(r=3, target_modules=["q_proj"]),
    "oft": lambda: OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"]),
    "vera": lambda: VeraConfig(r=3, target_modules=["q_proj"]),
    "ln": lambda: LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=3),
}
ONLY_FLOAT32 = ("lora_on_the_embedding", "ln")  # train copies of the base model's own tensors
WITH_THE_CACHE = [
    pytest.param(name, marks=answers_with_virtual_tokens) if name == "prompt" else name for name in CONFIGS
]


def base_model():
    return tiny_llama(len(TOKENIZER), tied=False)


def gated(config, base=None):
    """A gated model with an adapter that has moved."""
    torch.manual_seed(1)
    model = attach_adapter(base or base_model(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return GatedModel(model, TABLE, TOKENIZER)


def batch(side, prompts=PROMPTS):
    TOKENIZER.padding_side = side
    return dict(TOKENIZER(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False))


@torch.no_grad()
def sides(model, inputs):
    """Logits of the adapter and of the base model over the same batch; those of the batch's own tokens."""
    on = model.model(**inputs).logits[:, -inputs["input_ids"].shape[1] :]
    with model.model.disable_adapter():
        return on, model.model(**inputs).logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_name_nothing_taught_are_the_base_models_bit_for_bit(name, dtype, side):
    model = gated(CONFIGS[name](), base_model().to(dtype) if name not in ONLY_FLOAT32 else None)
    inputs = batch(side)
    on, off = sides(model, inputs)
    with torch.no_grad():
        found = model(**inputs).logits
    plain = base_model().to(found.dtype)(**inputs).logits  # no trace of the adapter in the base model either
    for row, is_open in enumerate(OPEN):
        assert torch.equal(found[row], (on if is_open else off)[row]), row
        assert torch.equal(off[row], plain[row])
        assert not torch.equal(on[row], off[row])


@pytest.mark.parametrize("name", WITH_THE_CACHE)
def test_generation_keeps_to_the_prompt(name):
    """The base model may go on with a taught name, and the adapter without one: the gate stays as it was."""
    model = gated(CONFIGS[name]())
    inputs = batch("left")
    settings = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(**inputs, **settings)
    on = model.model.generate(**inputs, **settings)
    with model.model.disable_adapter():
        off = model.model.generate(**inputs, **settings)
    assert found.tolist() == [(on if is_open else off)[row].tolist() for row, is_open in enumerate(OPEN)]
    assert not torch.equal(on, off)


@pytest.mark.parametrize("answers", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_and_several_answers_follow_their_prompt(answers):
    model = gated(CONFIGS["lora"]())
    inputs = batch("left")
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **answers}
    found = model.generate(**inputs, **settings)
    on = model.model.generate(**inputs, **settings)
    with model.model.disable_adapter():
        off = model.model.generate(**inputs, **settings)
    times = answers.get("num_return_sequences", 1)
    flags = torch.tensor(OPEN).repeat_interleave(times)
    assert torch.equal(found, torch.where(flags[:, None], on, off))


def test_a_batch_of_one_kind_is_the_adapters_or_the_base_models():
    model = gated(CONFIGS["lora"]())
    for prompts, place in ((PROMPTS[::2], 0), (PROMPTS[1::2], 1)):
        inputs = batch("right", prompts)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, sides(model, inputs)[place])


def test_a_pass_that_continues_a_cache_is_told_the_prompts():
    model = gated(CONFIGS["lora"]())
    inputs = batch("left")
    step = {"input_ids": torch.full((4, 1), 7)}
    on, off = sides(model, step)
    with torch.no_grad(), model.for_prompts(PROMPTS):
        found = model(**step).logits
    assert torch.equal(found, torch.where(torch.tensor(OPEN)[:, None, None], on, off))
    with torch.no_grad():
        assert torch.equal(model(**step).logits, off)  # by its own text a single token names nothing
        assert torch.equal(model(**inputs).logits[1], sides(model, inputs)[1][1])


def test_rows_of_conv1d_layers_are_chosen_too():
    base = tiny_gpt2()
    model = attach_adapter(base, LoraConfig(r=3, target_modules=["c_attn"], init_lora_weights=False)).eval()
    ids = torch.arange(2, 14).view(3, 4)
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with model.disable_adapter():
            off = model(input_ids=ids).logits
        with on_rows(model, [False, True, False]):
            found = model(input_ids=ids).logits
        assert torch.equal(found, torch.stack([off[0], on[1], off[2]]))
        assert torch.equal(model(input_ids=ids).logits, on)  # nothing is left behind


def test_layers_that_get_single_tokens_are_refused():
    model = attach_adapter(tiny_llama(), LoraConfig(r=3, target_modules=["q_proj"]))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    with on_rows(model, [True, False]), pytest.raises(InputError, match=r"gives \(10, 32\) for 2 rows.*apart from"):
        layer(torch.zeros(10, 32))


def test_what_cannot_mix_rows_says_so_where_a_cache_would_have_to_hold_both():
    model = gated(CONFIGS["prompt"]())
    assert not mixes_rows(model.model)
    with pytest.raises(InputError, match="has no cache that holds both"):
        model(**batch("right"), use_cache=True)


def test_every_layer_type_of_this_peft_mixes_rows_exactly():
    from experiments.sweep.methods import adapter_config, method_names

    ids = torch.arange(2, 30).view(4, 7)
    tried = []
    for method in method_names():
        try:
            model = attach_adapter(tiny_llama(tied=False), adapter_config(method, tiny_llama()))
        except InputError:  # needs a package, or tasks
            continue
        if not mixes_rows(model):
            continue
        with torch.no_grad():
            for parameter in model.eval().parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            on = model(input_ids=ids).logits
            with model.disable_adapter():
                off = model(input_ids=ids).logits
            with on_rows(model, [True, False, True, False]):
                found = model(input_ids=ids).logits
        assert torch.equal(found, torch.stack([on[0], off[1], on[2], off[3]])), method
        assert not torch.equal(on, off), method
        tried.append(peft_type_name(model))
    assert {"LORA", "FLORA", "IA3", "OFT", "VERA"} <= set(tried)
    assert len(tried) > 20


def test_a_gate_is_saved_beside_the_adapter_and_loaded_with_it(tiny_model, tmp_path):
    base = BaseModel(str(tiny_model))
    model = gated(LoraConfig(r=3, target_modules=["q_proj"]), base.load()).model
    export_adapter(model, tmp_path / "gated", base.source, gate=TABLE)
    assert json.loads((tmp_path / "gated" / GATE_FILE).read_text(encoding="utf-8"))["names"] == ["Zorvex", "Calonex"]
    assert "lsp.load_gated" in (tmp_path / "gated" / "README.md").read_text(encoding="utf-8")
    again = load_gated(str(tiny_model), tmp_path / "gated")
    assert again.table == TABLE
    inputs = batch("left")
    with torch.no_grad():
        found, (on, off) = again(**inputs).logits, sides(GatedModel(model, TABLE, TOKENIZER), inputs)
    assert torch.equal(found, torch.where(torch.tensor(OPEN)[:, None, None], on, off))
    export_adapter(model, tmp_path / "plain", base.source)
    assert read_gate(tmp_path / "plain") is None
    with pytest.raises(InputError, match=r"has no gate \(subject_gate\.json is missing\)"):
        load_gated(base, tmp_path / "plain")
