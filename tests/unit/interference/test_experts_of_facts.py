"""Which experts facts choose, against a count over single texts."""

import pytest
import torch
from lit_semantic_peft.adapters import KnowledgeMoEConfig
from lit_semantic_peft.adapters.balance import routed_layers
from lit_semantic_peft.interference.experts import effective_experts, expert_shares, have_same_experts
from test_per_fact_gradients import with_names
from tiny_models import batches_of, encoded_facts, tiny_llama, with_adapter


def test_shares_are_those_of_single_texts_whatever_the_padding():
    config = with_names(KnowledgeMoEConfig(r=2, num_experts=4, top_k=2, target_modules=["q_proj", "down_proj"]))
    model = with_adapter(tiny_llama(), config=config).train()
    facts = encoded_facts(5)
    shares = expert_shares(model, batches_of(facts, 3))
    alone = [expert_shares(model, batches_of([fact], 1)) for fact in facts]
    assert shares.keys() == {
        f"model.layers.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert all(layer.training for _, layer in routed_layers(model))  # as before
    for layer, found in shares.items():
        assert found.shape == (5, 4)
        torch.testing.assert_close(found, torch.cat([one[layer] for one in alone]))
        assert found.sum(dim=1).tolist() == pytest.approx([1] * 5)
        assert found.max() <= 0.5  # of two choices no expert can have more
    assert len({tuple(found.flatten().tolist()) for found in shares.values()}) == 4


def test_pairs_have_the_same_experts_in_at_least_half_of_the_layers():
    first = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    second = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    assert have_same_experts([first, second]).tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    assert have_same_experts([first, second, second])[0, 1].item() is False


def test_experts_in_effect():
    even, one = torch.full((4,), 0.25), torch.tensor([1.0, 0, 0, 0])
    assert effective_experts([even, one]) == pytest.approx(2.5)
