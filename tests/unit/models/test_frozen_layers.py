"""Reused frozen layers against the plain forward pass."""

import dataclasses

import pytest
import torch
from architectures import trained
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import FrozenLayers, fact_nll
from lit_semantic_peft.tokens import EncodedFact, collate
from peft import LoraConfig, PromptTuningConfig
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fixtures.models import tiny_gpt2, tiny_llama

# Three templates, one fact that is the beginning of another, the same prompt with two targets, a fact twice.
FACTS = [
    EncodedFact((5, 6, 7, 8), (9, 10), (1,)),
    EncodedFact((5, 6, 7, 8), (9,), (1,)),
    EncodedFact((5, 6, 7, 8), (11,), (1,)),
    EncodedFact((5, 6, 7, 12, 13), (9, 10, 14), (1,)),
    EncodedFact((5,), (6, 7), (1,)),
    EncodedFact((20, 21), (22,), (1,)),
    EncodedFact((20, 21), (22,), (1,)),
    EncodedFact((30, 31, 32, 33, 34, 35, 36), (37, 38), (1,)),
]
WEIGHTS = torch.tensor([0.0, 0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 0.7])


def small(config, model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(
            config(
                vocab_size=61,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                initializer_range=0.2,
                tie_word_embeddings=False,
                **({"sliding_window": None} if config is MistralConfig else {}),
            )
        ).eval()


MODELS = {
    "llama": tiny_llama,
    "mistral": lambda: small(MistralConfig, MistralForCausalLM),
    "qwen2": lambda: small(Qwen2Config, Qwen2ForCausalLM),
    "qwen3": lambda: small(Qwen3Config, Qwen3ForCausalLM),
}


def upper_lora(base):
    num_layers = base.config.num_hidden_layers
    upper = list(range(num_layers // 2, num_layers))
    return trained(base, LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=upper))


def loss_and_gradients(model, batch, **options):
    model.zero_grad()
    losses = fact_nll(model, batch, **options)
    (losses * WEIGHTS[: len(losses)]).sum().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(left, right):
    torch.testing.assert_close(left[0], right[0], atol=2e-6, rtol=1e-5)
    assert left[1].keys() == right[1].keys()
    assert left[1]
    for name, gradient in left[1].items():
        assert (gradient - right[1][name]).norm() <= 1e-5 * gradient.norm(), name
    assert max(gradient.norm() for gradient in left[1].values()) > 0.01


def padded_on_the_left(batch):
    """The same rows, moved to the right end of a wider rectangle."""
    columns = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "labels")}
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    width = batch.input_ids.shape[1] + 2
    moved = {name: torch.full((len(batch), width), fill[name]) for name in columns}
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        for name, values in columns.items():
            moved[name][row, width - length :] = values[row, :length]
    return dataclasses.replace(batch, **moved)


@pytest.fixture(params=MODELS)
def base(request):
    return MODELS[request.param]()


@pytest.fixture
def batch():
    return collate(FACTS, range(len(FACTS)), 0)


@pytest.mark.parametrize("memory_mb", [64, 0])
def test_reused_layers_give_the_losses_and_gradients_of_all_layers(base, batch, memory_mb, tmp_path):
    model = upper_lora(base)
    frozen = FrozenLayers(model, num_tokens=sum(map(len, FACTS)), memory_mb=memory_mb, folder=tmp_path)
    assert frozen.num_layers == base.config.num_hidden_layers // 2
    names = list(model.state_dict())
    plain = loss_and_gradients(model, batch)
    part = collate(FACTS[3:6], range(3, 6), 0)
    fact_nll(model, part, frozen=frozen)  # some facts are kept already, in a batch of another width
    for one in (batch, batch, padded_on_the_left(batch)):
        assert_same(plain, loss_and_gradients(model, one, frozen=frozen))
    assert bool(list(tmp_path.iterdir())) == (memory_mb == 0)
    assert list(model.state_dict()) == names


def test_kept_facts_do_not_run_the_lower_layers_again(batch):
    model = upper_lora(tiny_llama())
    runs = []
    model.get_base_model().model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    frozen = FrozenLayers(model, num_tokens=sum(map(len, FACTS)))
    for _ in range(3):
        loss_and_gradients(model, batch, frozen=frozen)
    assert runs == [1]


def test_a_full_disk_is_said(batch, full_disk, monkeypatch, tmp_path):
    """By default the values are in the cache, not in the system's temporary folder, which may be memory."""
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(tmp_path / "cache"))
    frozen = FrozenLayers(upper_lora(tiny_llama()), num_tokens=100, memory_mb=0)
    with pytest.raises(InputError, match=rf"{tmp_path / 'cache'} has no room .*`--model.reuse_frozen_layers=false`"):
        frozen.hidden(batch)


def test_another_fact_under_the_same_number_is_refused(batch):
    model = upper_lora(tiny_llama())
    frozen = FrozenLayers(model, num_tokens=100)
    fact_nll(model, batch, frozen=frozen)
    with pytest.raises(ValueError, match="text 0 has 4 tokens and had 7"):
        fact_nll(model, collate(FACTS[5:6], [0], 0), frozen=frozen)


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (
            tiny_llama,
            LoraConfig(r=2, target_modules="all-linear"),
            r"layer 0 .* trained.*_transform: \[1, \.\.\., 1\]",
        ),
        (tiny_gpt2, LoraConfig(r=2, target_modules=["c_attn"], layers_to_transform=[1]), "the model is of type 'gpt2'"),
        (tiny_llama, PromptTuningConfig(num_virtual_tokens=2), "an adapter of type PROMPT_TUNING"),
    ],
)
def test_what_cannot_be_reused_is_refused(make, config, message):
    with pytest.raises(InputError, match=message):
        FrozenLayers(trained(make(), config), num_tokens=10)
