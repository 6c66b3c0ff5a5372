import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import fact_keys, key_second_moment
from peft import PromptTuningConfig
from tiny_models import batches_of, encoded_facts, tiny_gpt2, tiny_llama, with_adapter


@pytest.mark.parametrize(
    ("make", "layer"), [(tiny_llama, "layers.1.mlp.down_proj"), (tiny_gpt2, "h.1.mlp.c_proj")], ids=["llama", "gpt2"]
)
def test_keys_and_moment_equal_a_loop_over_single_facts(make, layer):
    model = with_adapter(make()).train()
    facts = encoded_facts(7)
    (module,) = [module for name, module in model.named_modules() if name.endswith(layer)]
    keys, tokens = [], []
    seen = []
    handle = module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()[0]))
    model.eval()
    for fact in facts:
        model(input_ids=torch.tensor([[*fact.prompt_ids, *fact.target_ids, *fact.end_ids]]))
        keys.append(seen[-1][len(fact.prompt_ids) - 1])
        tokens.append(seen[-1])
    handle.remove()
    model.train()
    found = fact_keys(model, batches_of(facts, 3), layer)
    torch.testing.assert_close(found, torch.stack(keys), rtol=1e-4, atol=1e-5)
    moment, count = key_second_moment(model, batches_of(facts, 3), layer)
    everything = torch.cat(tokens).double()
    assert count == len(everything)
    torch.testing.assert_close(moment, everything.T @ everything, rtol=1e-4, atol=1e-5)
    assert model.training
    assert not module._forward_pre_hooks


def test_virtual_tokens_are_no_prompt():
    model = with_adapter(tiny_llama(), config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    batches = batches_of(encoded_facts(3), 3)
    assert fact_keys(model, batches, "layers.0.mlp.down_proj").shape == (3, 48)
    _, count = key_second_moment(model, batches, "layers.0.mlp.down_proj")
    assert count == int(batches[0].attention_mask.sum())


@pytest.mark.parametrize(("layer", "found"), [("no_such", "found 0"), ("mlp.down_proj", "found 2")])
def test_a_name_that_is_not_one_layer_is_said(layer, found):
    with pytest.raises(InputError, match=found):
        fact_keys(tiny_llama(), batches_of(encoded_facts(1), 1), layer)
