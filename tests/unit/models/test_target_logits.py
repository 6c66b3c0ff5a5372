"""`target_logits` equals the plain model's logits at the predicting positions, whatever the head is."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import transformers
from architectures import ADAPTERS, WithoutLogitsToKeep, rows, trained
from lit_semantic_peft.models import FrozenLayers, token_nll
from lit_semantic_peft.models.objective import predicting_mask, target_logits
from lit_semantic_peft.models.peft_traits import num_virtual_tokens
from lit_semantic_peft.tokens import collate
from peft import LoraConfig
from torch import nn

from fixtures.models import VOCABULARY, tiny_llama

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
# The configuration's class, the model's class, sizes and what the architecture does to its logits.
ARCHITECTURES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZES),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {name: size for name, size in SIZES.items() if name != "num_key_value_heads"},
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SIZES),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", SIZES | {"head_dim": 8, "final_logit_softcapping": 0.5}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", SIZES | {"head_dim": 8, "final_logit_softcapping": 0.5}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", SIZES | {"logits_scaling": 4.0}),
    "cohere": ("CohereConfig", "CohereForCausalLM", SIZES | {"logit_scale": 0.25}),
}
SHAPES_ITS_LOGITS = {"gemma2": "final_logit_softcapping", "gemma3": "final_logit_softcapping"} | {
    "granite": "logits_scaling",
    "cohere": "logit_scale",
}


def tiny(architecture, **changed):
    config, model, sizes = ARCHITECTURES[architecture]
    tokens = {
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**tokens | sizes | changed)).eval()


@pytest.fixture
def batch():
    return collate(rows(7), range(7), 0)


def plain_logits(model, batch):
    """Every position through the head; virtual tokens cut off in front."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits[:, num_virtual_tokens(model) : -1][predicting_mask(batch.labels)]


def assert_same_logits_and_gradients(model, batch, parameters):
    def logits_and_gradients(logits):
        loss = F.cross_entropy(logits, batch.labels[:, 1:][predicting_mask(batch.labels)])
        return logits.detach(), torch.autograd.grad(loss, parameters)

    logits, gradients = logits_and_gradients(target_logits(model, batch)[0])
    expected, expected_gradients = logits_and_gradients(plain_logits(model, batch))
    assert logits.shape == (int(predicting_mask(batch.labels).sum()), VOCABULARY)
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-6)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)


def seen_by(module):
    """The sizes `(..., H)` of all that a module receives."""
    sizes = []
    module.register_forward_pre_hook(lambda _, arguments: sizes.append(tuple(arguments[0].shape)))
    return sizes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_gradients_equal_the_plain_models(architecture, batch):
    model = tiny(architecture)
    assert_same_logits_and_gradients(model, batch, list(model.parameters()))


@pytest.mark.parametrize("architecture", SHAPES_ITS_LOGITS)
def test_what_shapes_the_logits_counts(architecture, batch):
    """The twin of the test above: an architecture's soft-capping and scaling is something that could be lost."""
    setting = SHAPES_ITS_LOGITS[architecture]
    with torch.no_grad():
        logits = target_logits(tiny(architecture), batch)[0]
        unshaped = target_logits(tiny(architecture, **{setting: 1e6 if "cap" in setting else 1.0}), batch)[0]
    assert (logits - unshaped).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_predicting_positions_are_projected(architecture, batch):
    model = tiny(architecture)
    sizes = seen_by(model.get_output_embeddings())
    _, targets, hidden = target_logits(model, batch)
    assert sizes == [(1, len(targets), 16)]
    assert hidden.shape == (len(targets), 16)


def test_the_hidden_states_are_those_that_the_head_receives(batch):
    model = tiny("gemma2")
    seen = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    plain_logits(model, batch)
    handle.remove()
    hidden = target_logits(model, batch)[2]
    torch.testing.assert_close(hidden, seen[0][:, :-1][predicting_mask(batch.labels)], atol=1e-6, rtol=1e-6)


def test_the_head_is_left_as_it_was_also_after_an_error(batch):
    model = tiny("llama")
    before = model(input_ids=batch.input_ids).logits
    target_logits(model, batch)
    with pytest.raises(IndexError):
        target_logits(model, dataclasses.replace(batch, input_ids=batch.input_ids + VOCABULARY))
    assert torch.equal(model(input_ids=batch.input_ids).logits, before)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, target_modules=["q_proj", "lm_head"]),
        LoraConfig(r=3, target_modules=["q_proj", "lm_head"], use_dora=True),
        LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(r=3, target_modules=["q_proj"], trainable_token_indices=[5, 6]),
    ],
    ids=["lora", "dora", "modules_to_save", "trainable_tokens"],
)
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_on_the_head(config, tied, batch):
    model = trained(tiny("llama", tie_word_embeddings=tied), config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert_same_logits_and_gradients(model, batch, parameters)
    sizes = seen_by(model.get_base_model().get_output_embeddings())
    targets = target_logits(model, batch)[1]
    assert sizes == [(1, len(targets), 16)]


@pytest.mark.parametrize("adapter", ["prompt_tuning", "p_tuning", "prefix_tuning"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_virtual_tokens(adapter, architecture, batch):
    model = trained(tiny(architecture), ADAPTERS[adapter]())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert_same_logits_and_gradients(model, batch, parameters)
    with torch.no_grad(), model.disable_adapter():
        without = target_logits(model, batch)[0]
    assert (target_logits(model, batch)[0] - without).abs().max() > 1e-2


def test_a_model_without_the_argument_projects_as_little(batch):
    model = tiny_llama()
    wrapped = WithoutLogitsToKeep(model)
    sizes = seen_by(model.get_output_embeddings())
    logits, targets, _ = target_logits(wrapped, batch)
    assert sizes == [(1, len(targets), 32)]
    assert torch.equal(logits, target_logits(model, batch)[0])


class ProjectsItself(nn.Module):
    """A model that multiplies by its head's weight, or calls the head on all tokens in one row."""

    def __init__(self, model, *, flat):
        super().__init__()
        self.model, self.flat = model, flat

    def get_output_embeddings(self):
        return self.model.lm_head

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        output = self.model.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        hidden = output.last_hidden_state
        if self.flat:
            output.logits = self.model.lm_head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        else:
            output.logits = F.linear(hidden, self.model.lm_head.weight)
        return output


@pytest.mark.parametrize("flat", [False, True])
def test_a_head_that_is_not_called_row_by_row_gives_all_logits_to_choose_from(flat, batch):
    model = tiny_llama()
    logits, targets, hidden = target_logits(ProjectsItself(model, flat=flat), batch)
    expected, expected_targets, _ = target_logits(model, batch)
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-6)
    assert torch.equal(targets, expected_targets)
    assert hidden is None


def test_a_model_that_names_no_head_gives_all_logits_to_choose_from(batch, monkeypatch):
    model = tiny_llama()
    expected = target_logits(model, batch)[0]
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    logits, _, hidden = target_logits(model, batch)
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-6)
    assert hidden is None


def test_one_row_in_which_every_position_predicts():
    batch = collate([rows(1)[0]], [0], 0)
    batch.labels[:] = batch.input_ids
    model = tiny_llama()
    torch.testing.assert_close(target_logits(model, batch)[0], plain_logits(model, batch), atol=2e-6, rtol=1e-6)


def test_reused_frozen_layers_and_checkpointed_ones(batch):
    model = trained(tiny("llama"), LoraConfig(r=3, target_modules=["q_proj"], layers_to_transform=[1]))
    frozen = FrozenLayers(model, int(batch.attention_mask.sum()))
    expected = target_logits(model, batch)[0]
    torch.testing.assert_close(target_logits(model, batch, frozen=frozen)[0], expected, atol=2e-6, rtol=1e-6)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = torch.autograd.grad(token_nll(model, batch).sum(), parameters)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    checkpointed = torch.autograd.grad(token_nll(model, batch).sum(), parameters)
    for gradient, other in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)
