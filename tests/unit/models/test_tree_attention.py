"""Logits, losses and gradients from a prefix tree are those of the padded batch."""

import dataclasses

import pytest
import torch
import transformers
from architectures import ADAPTERS, rows, trained
from lit_semantic_peft.models import FrozenLayers, attach_adapter, fact_nll, target_logits, token_nll
from lit_semantic_peft.models.fast_ways import FastWays, set_fast_ways
from lit_semantic_peft.models.self_check import self_check
from lit_semantic_peft.models.tree_attention import prefix_tree_obstacle, tree_inputs
from lit_semantic_peft.tokens import EncodedFact, collate, prefix_tree
from peft import LoraConfig
from test_target_logits import SIZES, tiny

from fixtures.models import VOCABULARY, tiny_gpt2, tiny_llama

SHARING = [
    EncodedFact((5, 6, 7, 8, 9, 10), (11, 12), (1,)),
    EncodedFact((5, 6, 7), (11,), (1,)),  # begins like the first one
    EncodedFact((5, 6, 7, 8, 9, 10), (13,), (1,)),  # another label at the same node
    EncodedFact((5, 6, 7, 8, 9, 10), (11, 12), (1,)),  # the first one again
    EncodedFact((5, 6, 7), (8, 9)),  # begins the first one, with other labels
]


def lora():
    return LoraConfig(r=3, target_modules="all-linear")


def gemma3(**changed):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"num_hidden_layers": 3, "sliding_window": 3, "layer_types": kinds, "final_logit_softcapping": None}
    return tiny("gemma3", **{**sizes, **changed})


def mistral():
    config = transformers.MistralConfig(vocab_size=VOCABULARY, **SIZES, sliding_window=3, initializer_range=0.2)
    return transformers.MistralForCausalLM(config).eval()


MODELS = {
    "llama": lambda: tiny("llama"),
    "gpt2": lambda: tiny("gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "gpt_neox": lambda: tiny("gpt_neox"),
    "qwen2": lambda: tiny("qwen2"),
    "gemma2": lambda: tiny("gemma2", sliding_window=3),
    "gemma3": gemma3,
    "mistral": mistral,
}


GEMMA2_SDPA = ("gemma2", "sdpa")  # which transformers does not have


def gradients(model, losses):
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    weight = torch.linspace(0.0, 2.0, len(losses), dtype=losses.dtype)
    found = torch.autograd.grad((weight * losses).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def one_by_one(model, facts):
    return torch.cat([fact_nll(model, collate([fact], [0], 0)) for fact in facts])


def assert_equal_training(model, facts, batch, tree, tolerance=1e-5):
    expected, losses = one_by_one(model, facts), fact_nll(model, batch, tree=tree)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    expected, found = gradients(model, expected), gradients(model, losses)
    assert len(found) > 2
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize(
    ("name", "attention"), [(name, one) for name in MODELS for one in ("eager", "sdpa") if (name, one) != GEMMA2_SDPA]
)
def test_losses_and_gradients_are_those_of_the_facts_one_by_one(name, attention):
    model = trained(MODELS[name](), lora()).double().train()
    model.get_base_model().set_attn_implementation(attention)
    for facts, max_nodes in ((SHARING, 512), ([*rows(7), *SHARING], 24)):
        batch = collate(facts, range(len(facts)), 0)
        tree = prefix_tree(batch, max_nodes)
        assert (len(tree.row) > 1) == (max_nodes == 24)
        assert_equal_training(model, facts, batch, tree)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral"])
def test_facts_are_longer_than_the_window(name):
    """Without its windows the same tree gives other losses, so the test above can fail."""
    model = MODELS[name]().double()
    batch = collate(SHARING, range(len(SHARING)), 0)
    tree, expected = prefix_tree(batch), one_by_one(model, SHARING)
    torch.testing.assert_close(fact_nll(model, batch, tree=tree), expected)
    model.config.sliding_window = 100  # which only our mask reads, where there is a mask already
    assert (fact_nll(model, batch, tree=tree) - expected).abs().max() > 1e-3


def test_in_single_precision_and_half():
    facts = [*rows(7), *SHARING]
    batch = collate(facts, range(12), 0)
    tree = prefix_tree(batch)
    model = trained(tiny_llama(), lora())
    assert_equal_training(model, facts, batch, tree)
    padded = fact_nll(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, packed = fact_nll(model, batch), fact_nll(model, batch, tree=tree)
    assert (packed - padded).abs().max() < 3 * (rounded - padded).abs().max() + 1e-3
    half = MODELS["gemma3"]().bfloat16()
    torch.testing.assert_close(fact_nll(half, batch, tree=tree), fact_nll(half, batch), atol=0.1, rtol=0.05)


def test_every_target_has_its_hidden_state_too():
    model = tiny_llama()
    batch = collate([*SHARING, *rows(3)], range(8), 0)
    tree = prefix_tree(batch)
    for found, expected in zip(target_logits(model, batch, tree=tree), target_logits(model, batch), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_an_output_head_to_cut(monkeypatch):
    model = tiny_llama()
    batch = collate([*SHARING, *rows(3)], range(8), 0)
    expected = target_logits(model, batch)[0]
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    logits, _, hidden = target_logits(model, batch, tree=prefix_tree(batch, 24))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert hidden is None


def test_on_reused_frozen_layers_and_with_checkpoints():
    model = trained(tiny("llama"), LoraConfig(r=3, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]))
    batch = collate([*SHARING, *rows(3)], range(8), 0)
    tree = prefix_tree(batch)
    frozen = FrozenLayers(model, int(batch.attention_mask.sum()))
    expected = gradients(model, fact_nll(model, batch))
    reused = gradients(model, fact_nll(model, batch, frozen=frozen, tree=tree))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model.train(), fact_nll(model, batch, tree=tree))
    for name, gradient in expected.items():
        torch.testing.assert_close(reused[name], gradient, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tree", [False, True])
def test_no_last_token_is_run(tree):
    """Whatever stands there: in a padded batch the column of the longest rows, in a tree that of each row."""
    seen = []
    model = tiny_llama()
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    facts = [EncodedFact((5, 6), (7, 58)), EncodedFact((8,), (9, 59)), EncodedFact((10, 11, 12), (13, 60))]
    batch = collate(facts, range(3), 0)
    expected = token_nll(model, batch)
    changed = batch.input_ids.masked_fill(batch.input_ids >= 58, 50)
    same = dataclasses.replace(batch, input_ids=changed)
    packed = prefix_tree(batch) if tree else None
    torch.testing.assert_close(token_nll(model, same, tree=packed), expected, atol=1e-5, rtol=1e-5)
    *_, ids = seen
    assert ids.shape == ((1, 9) if tree else (3, 4))
    assert (ids == 50).sum() == (0 if tree else 2)  # elsewhere it stands where padding would


def test_the_self_check_allows_what_is_exact():
    for build in MODELS.values():
        model = trained(build(), lora())
        assert self_check(model, ROWS, 0, trains=True).prefix_tree
        assert prefix_tree_obstacle(model) == ""


ROWS = [EncodedFact((5, 6), (7, 8)), EncodedFact((9, 10, 11, 12, 13), (14, 15))]


def bloom():
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)
    return transformers.BloomForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (bloom, "takes no `position_ids`"),
        (lambda: trained(tiny_llama(), ADAPTERS["lora"]()), "self-check"),
        (tiny_gpt2, "self-check"),
    ],
)
def test_alibi_and_dropout_are_found(build, reason):
    base = build()
    model = base if hasattr(base, "get_base_model") else trained(base, lora())
    ways = self_check(model, ROWS, 0, trains=True)
    assert ways == FastWays(prefix_tree=False)
    assert reason in prefix_tree_obstacle(model)


def test_dropout_matters_in_training_only():
    model = trained(tiny_llama(), ADAPTERS["lora"]())
    assert self_check(model, ROWS, 0).prefix_tree


def test_what_is_refused_without_a_pass():
    neo = transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    )
    assert "window_size" in prefix_tree_obstacle(transformers.GPTNeoForCausalLM(neo))
    virtual = attach_adapter(tiny_llama(), ADAPTERS["prompt_tuning"]())
    assert "PROMPT_TUNING has virtual tokens" in prefix_tree_obstacle(virtual)
    with virtual.disable_adapter():
        assert prefix_tree_obstacle(virtual) == ""
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in prefix_tree_obstacle(model)
    model = gemma3()
    model.config.layer_types = ["linear_attention", "full_attention", "sliding_attention"]
    assert "linear_attention" in prefix_tree_obstacle(model)
    model = tiny_llama()
    set_fast_ways(model, FastWays(prefix_tree=False))
    assert "self-check" in prefix_tree_obstacle(model)


def test_a_mask_for_each_kind_of_layer():
    tree = prefix_tree(collate(SHARING, range(5), 0))
    masks = tree_inputs(gemma3(), tree)["attention_mask"]
    assert sorted(masks) == ["full_attention", "sliding_attention"]
    assert (masks["sliding_attention"] == 0).sum() < (masks["full_attention"] == 0).sum()
    assert tree_inputs(tiny_llama(), tree)["attention_mask"].shape == (1, 1, *tree.is_visible.shape[1:])
