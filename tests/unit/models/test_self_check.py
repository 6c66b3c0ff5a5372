"""The self-check against models for which a fast way is really wrong, and those for which every way is right."""

import pytest
import torch
from architectures import trained
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import attach_adapter, greedy_answers
from lit_semantic_peft.models.fast_ways import FastWays, fast_ways, is_checked, set_fast_ways
from lit_semantic_peft.models.gradient_check import moved_adapter
from lit_semantic_peft.models.objective import target_logits
from lit_semantic_peft.models.self_check import check_rows, self_check
from lit_semantic_peft.tokens import EncodedFact, FactEncoder, collate
from peft import AdaLoraConfig, CPTConfig, IA3Config, LoraConfig, PromptTuningConfig, TrainableTokensConfig
from test_generation import MAX_NEW, prompts
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RoFormerConfig,
    RoFormerForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    XLMConfig,
    XLMWithLMHeadModel,
)

from fixtures.models import VOCABULARY, byte_level_bpe, tiny_gpt2, tiny_llama
from fixtures.releases import answers_with_virtual_tokens

ROWS = [EncodedFact((5, 6), (7, 8)), EncodedFact((9, 10, 11, 12, 13), (14, 15))]
SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "max_position_embeddings": 64},
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def built(kind, config):
    """A model whose every trained tensor, norms and positions too, matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:  # a table of positions that is not trained is right as it is
                add_noise(parameter)
    return model


@torch.no_grad()
def add_noise(parameter, scale=0.1):
    parameter.add_(scale * torch.randn_like(parameter))


def bart():
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    config = BartConfig(vocab_size=VOCABULARY, max_position_embeddings=64, is_encoder_decoder=False, **sizes)
    config.is_decoder = True
    return built(BartForCausalLM, config)


def recurrent_gemma():
    sizes = {"num_key_value_heads": 1, "head_dim": 8, "lru_width": 32}
    return built(RecurrentGemmaForCausalLM, RecurrentGemmaConfig(**SIZES, **TOKENS, **sizes))


def rwkv():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}
    return built(RwkvForCausalLM, RwkvConfig(vocab_size=VOCABULARY, **sizes))


def xlm():
    sizes = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
    return built(XLMWithLMHeadModel, XLMConfig(vocab_size=VOCABULARY, causal=True, **sizes))


def roberta():
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return built(RobertaForCausalLM, RobertaConfig(**SIZES, **tokens, is_decoder=True))


def roformer():
    return built(RoFormerForCausalLM, RoFormerConfig(**SIZES, **TOKENS, is_decoder=True))


def mamba():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return built(MambaForCausalLM, MambaConfig(vocab_size=VOCABULARY, **sizes))


def bert(is_decoder):
    return built(BertLMHeadModel, BertConfig(**SIZES, **TOKENS, is_decoder=is_decoder))


EQUAL_LENGTHS = FastWays(batched_answers=False, prefix_tree=False)
PLAIN = FastWays(batched_answers=False, cache=False, prompt_cache=False, prefix_tree=False)
WRONG = {
    "bart": (bart, EQUAL_LENGTHS),
    "recurrent_gemma": (recurrent_gemma, EQUAL_LENGTHS),
    "roberta": (roberta, PLAIN),
    "rwkv": (rwkv, FastWays(batched_answers=False, cache=False, prefix_tree=False)),
    "xlm": (xlm, PLAIN),
}
RIGHT = {
    **{"bert": lambda: bert(is_decoder=True), "gpt2": tiny_gpt2, "llama": tiny_llama, "mamba": mamba},
    "roformer": roformer,
}


def answers_of(model):
    return greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=4)


def by_plain_passes(model, prompt, most):
    """One token after the other, each from a pass over all of the text, as training runs it."""
    ids = torch.tensor([prompt])
    for _ in range(most):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_way_is_found_and_answers_are_right_without_it(name):
    build, ways = WRONG[name]
    model = build()
    expected = [by_plain_passes(model, prompt, most) for prompt, most in zip(prompts(), MAX_NEW, strict=True)]
    assert answers_of(model) != expected, "the fast way would have been right"
    assert self_check(model, ROWS, 0) == fast_ways(model) == ways
    assert answers_of(model) == expected
    assert len(ways.instead) == (not ways.batched_answers) + (not ways.prompt_cache)


def test_a_difference_too_small_to_change_these_answers_is_found():
    """Rotations by angles that do not grow evenly depend on where a text begins."""
    model = roformer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_noise(model.roformer.encoder.embed_positions.weight, scale=0.01)
    assert answers_of(model) == [by_plain_passes(model, *row) for row in zip(prompts(), MAX_NEW, strict=True)]
    assert self_check(model, ROWS, 0) == EQUAL_LENGTHS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_stays_allowed(name, dtype):
    model = RIGHT[name]().to(dtype)
    assert not is_checked(model)
    assert self_check(model, ROWS, 0) == FastWays(prefix_tree=name not in ("mamba", "roformer"))
    assert is_checked(model)
    assert fast_ways(model).instead == []


@pytest.mark.parametrize("name", ["roberta", "rwkv"])
def test_a_wrong_way_is_found_in_half_precision(name):
    build, ways = WRONG[name]
    assert self_check(build().to(torch.bfloat16), ROWS, 0) == ways


def test_a_model_that_reads_ahead_is_refused():
    with pytest.raises(InputError, match="compared the logits of a padded batch of two texts") as refused:
        self_check(bert(is_decoder=False), ROWS, 0)
    assert "--self_check false" in str(refused.value)


def test_a_loss_that_is_not_that_of_transformers_is_refused(monkeypatch):
    model = tiny_llama()
    own = model.loss_function
    monkeypatch.setattr(type(model), "loss_function", property(lambda _: lambda **given: 1.01 * own(**given)))
    with pytest.raises(InputError, match="transformers' own losses"):
        self_check(model, ROWS, 0)


ALORA = {"alora_invocation_tokens": [6], "target_modules": ["q_proj", "v_proj", "down_proj"]}
WITH_INVOCATION = [EncodedFact((5, 6), (7, 8)), EncodedFact((9, 10, 11, 6, 13), (14, 15))]


def test_an_adapter_that_begins_at_certain_tokens_is_not_reused():
    """Reused outputs come without the tokens at which this adapter begins: it would be trained on nothing."""
    model = attach_adapter(tiny_llama(), LoraConfig(layers_to_transform=[1], **ALORA))
    ways = self_check(model, WITH_INVOCATION, 0, trains=True)
    assert not ways.reuse_frozen_layers
    lora = attach_adapter(tiny_llama(), LoraConfig(layers_to_transform=[1], target_modules=["q_proj", "v_proj"]))
    assert self_check(lora, WITH_INVOCATION, 0, trains=True).reuse_frozen_layers


def test_the_texts_awake_the_adapter():
    encoder = FactEncoder(byte_level_bpe())
    plain = check_rows(encoder, tiny_llama())
    assert len({len(row.prompt_ids) for row in plain}) == 2
    model = attach_adapter(tiny_llama(), LoraConfig(**ALORA))
    assert [row.prompt_ids for row in check_rows(encoder, model)] == [(*row.prompt_ids, 6) for row in plain]
    with model.disable_adapter():
        assert check_rows(encoder, model) == plain


def with_trained_tokens(tokens):
    return attach_adapter(
        tiny_llama(tied=False), TrainableTokensConfig(token_indices=tokens, target_modules=["embed_tokens"])
    )


def test_the_texts_have_a_token_whose_embedding_is_trained():
    encoder = FactEncoder(byte_level_bpe())
    plain = check_rows(encoder, tiny_llama())
    model = with_trained_tokens([60, 59])
    rows = check_rows(encoder, model)
    assert [row.prompt_ids for row in rows] == [(*row.prompt_ids, 59) for row in plain]
    with model.disable_adapter():
        assert check_rows(encoder, model) == plain
    beside = attach_adapter(tiny_llama(tied=False), LoraConfig(trainable_token_indices={"embed_tokens": [59]}))
    assert check_rows(encoder, beside) == rows


def test_an_embedding_is_trained_where_its_token_is():
    model = with_trained_tokens([59])
    with pytest.raises(InputError, match="TRAINABLE_TOKENS would not be trained"):
        self_check(model, ROWS, 0, trains=True)
    rows = [EncodedFact((*row.prompt_ids, 59), row.target_ids) for row in ROWS]
    assert self_check(model, rows, 0, trains=True) == FastWays()


def test_base_and_adapter_have_verdicts_of_their_own():
    model = attach_adapter(tiny_llama(), LoraConfig())
    set_fast_ways(model, PLAIN)
    with model.disable_adapter():
        assert not is_checked(model)
        assert fast_ways(model) == FastWays()
        set_fast_ways(model, EQUAL_LENGTHS)
    assert fast_ways(model) == PLAIN
    assert fast_ways(model.get_base_model()) == EQUAL_LENGTHS


def everything(model):
    """What the check could change."""
    return {
        **{name: value.clone() for name, value in model.state_dict().items()},
        **{f"buffer {name}": value.clone() for name, value in model.named_buffers()},
        "random": torch.get_rng_state(),
        **{f"mode {name}": torch.tensor(module.training) for name, module in model.named_modules()},
        **{
            f"trained {name}": torch.tensor([one.requires_grad, one.grad is not None])
            for name, one in model.named_parameters()
        },
        "hooks": torch.tensor([len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]),
    }


ADAPTERS = {
    "adalora": AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=10),
    "cpt": CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[2, 3], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "lora": LoraConfig(target_modules="all-linear", lora_dropout=0.2),
    "norms": LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]),
    "prompt_tuning": PromptTuningConfig(num_virtual_tokens=3),
}


VIRTUAL = [pytest.param(name, marks=answers_with_virtual_tokens) for name in ("cpt", "prompt_tuning")]


@pytest.mark.parametrize("name", ["adalora", "ia3", "lora", "norms", *VIRTUAL])
def test_the_check_leaves_no_trace(name):
    model = trained(tiny_llama(dropout=0.1), ADAPTERS[name]).train()
    model.get_base_model().model.layers[0].eval()
    optimizer = torch.optim.AdamW(one for one in model.parameters() if one.requires_grad)
    before = everything(model)
    self_check(model, ROWS, 0, trains=True)
    after = everything(model)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not optimizer.state


def test_a_loss_that_peft_changes_with_the_adapter_off_is_no_difference():
    model = attach_adapter(tiny_llama(), ADAPTERS["adalora"])
    with model.disable_adapter():
        assert self_check(model, ROWS, 0) == FastWays()


def test_the_step_of_the_check_is_seen_under_autocast():
    """Which keeps copies of the tensors in half precision as long as its context lasts."""
    model = attach_adapter(tiny_llama(), LoraConfig(target_modules="all-linear")).eval()
    batch = collate(ROWS[:1], [0], 0, with_end=False)
    with torch.autocast("cpu", torch.bfloat16):
        before = target_logits(model, batch)[0]
        with moved_adapter(model, batch):
            moved = target_logits(model, batch)[0]
        after = target_logits(model, batch)[0]
    assert not torch.equal(moved, before)
    assert torch.equal(after, before)


def test_a_refused_check_leaves_no_trace():
    model = trained(bert(is_decoder=False), LoraConfig(target_modules=["query"])).train()
    before = everything(model)
    with pytest.raises(InputError, match="padded batch"):
        self_check(model, ROWS, 0, trains=True)
    after = everything(model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_buffer_that_the_model_replaces_is_restored():
    model = tiny_llama()
    scale = nn.Module()
    scale.register_buffer("seen", torch.zeros(1))
    model.model.counter = scale
    kept = scale.seen
    model.register_forward_hook(lambda *_: setattr(scale, "seen", scale.seen + 1))
    self_check(model, ROWS, 0)
    assert scale.seen is kept
    assert float(kept) == 0


def test_the_check_is_a_few_passes():
    """Three plain, one for rounding, one padded, two of `generate`, one continued, one of a prefix tree, and one for a
    step of the adapter."""
    model = attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    passes = []
    model.get_base_model().register_forward_hook(lambda *_: passes.append(1))
    assert self_check(model, ROWS, 0, trains=True) == FastWays()
    assert len(passes) == 10
    with model.disable_adapter():
        self_check(model, ROWS, 0)
    assert len(passes) == 10 + 9


def test_an_adapter_that_nothing_reaches_is_refused():
    """Cross-attention never runs where there is no encoder."""
    model = attach_adapter(bart(), LoraConfig(target_modules=r".*encoder_attn\.(q|v)_proj"))
    with pytest.raises(InputError, match="type LORA would not be trained on this base model"):
        self_check(model, ROWS, 0, trains=True)


def test_layers_that_do_not_run_need_no_gradient_and_are_named(caplog):
    model = attach_adapter(bart(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert self_check(model, ROWS, 0, trains=True) == EQUAL_LENGTHS
    assert "get no gradient from the texts of the self-check: 8 of 16" in caplog.text
    assert "encoder_attn.v_proj" in caplog.text


def test_an_adapter_whose_every_gradient_is_read_must_have_them():
    model = attach_adapter(bart(), AdaLoraConfig(target_modules=["q_proj", "v_proj"], total_step=10))
    with pytest.raises(InputError, match="12 of 24 tensors have no gradient"):
        self_check(model, ROWS, 0, trains=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda output: output.detach(), "1 of 4 tensors have no gradient"),
        (lambda output: output + output.square().sqrt() * 0, "a gradient that is not finite"),
    ],
)
def test_a_tensor_without_a_proper_gradient_is_named(spoil, said):
    model = attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    where = layer.lora_A if "no gradient" in said else layer.lora_B
    where["default"].register_forward_hook(lambda module, given, output: spoil(output))
    with pytest.raises(InputError, match=said) as refused:
        self_check(model, ROWS, 0, trains=True)
    assert "layers.1.self_attn.q_proj.lora_" in str(refused.value)


def test_a_tensor_that_stays_zero_is_named_in_the_log(caplog):
    model = attach_adapter(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    layer.lora_B["default"].register_forward_hook(lambda module, given, output: 0 * output)
    self_check(model, ROWS, 0, trains=True)
    (line,) = [record.message for record in caplog.records if "get no gradient" in record.message]
    assert "2 of 4" in line
    assert "layers.1.self_attn.q_proj.lora_A.default.weight" in line
