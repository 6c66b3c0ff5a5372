"""The balance of experts: a term of each fact, by the load of the optimizer step before."""

import pytest
import torch
from lit_semantic_peft.adapters import KnowledgeMoEConfig
from lit_semantic_peft.adapters.balance import balance_of, end_step, loads, routed_layers, set_loads
from lit_semantic_peft.models import traits_of
from lit_semantic_peft.training.step import micro_batch_terms
from peft import get_peft_model

from fixtures.models import tiny_llama

IDS = torch.tensor([[5, 6, 7, 8], [10, 11, 12, 13], [3, 14, 15, 16]])


class Names:
    """Stands for `Anchors`: a prompt's first token is its name, and 3 is none."""

    least_similarity = None

    def of_tokens(self, ids):
        return () if ids[0] == 3 else (str(ids[0]),)

    def tokens_of(self, name):
        return (int(name),)


def model_with(**settings):
    torch.manual_seed(0)
    config = KnowledgeMoEConfig(
        **{"r": 2, "num_experts": 3, "router_noise": 0.0, "target_modules": ["q_proj", "v_proj"]} | settings,
        task_type="CAUSAL_LM",
    )
    config.anchors = Names()
    return get_peft_model(tiny_llama(), config).train()


def probabilities(model, row):
    """G of every layer over the tokens of one text, `(T, E)`, from a pass of its own."""
    found = []
    handles = [
        layer.register_forward_hook(
            lambda layer, arguments, _: found.append(layer.gates(arguments[0], layer.rows(arguments[0]).anchor))
        )
        for _, layer in routed_layers(model)
    ]
    with torch.no_grad():
        model(input_ids=row[None])
    for handle in handles:
        handle.remove()
    return found


def test_it_is_the_formula_and_reads_the_load_of_the_step_before():
    model = model_with(balance=0.5)
    weight = torch.tensor([1.0, 0.0, 2.0])
    for step in range(2):
        model(input_ids=IDS)
        found = balance_of(model, weight)
        layers = [layer for _, layer in routed_layers(model)]
        for row in range(2):
            terms = [
                3 * ((layer.load - 1 / 3) * probability[0].mean(dim=0)).sum()
                for layer, (probability, _) in zip(layers, probabilities(model, IDS[row]), strict=True)
            ]
            assert found[row].item() == pytest.approx(0.5 * float(torch.stack(terms).mean()), rel=1e-4, abs=1e-7)
        assert found[2].item() == 0  # a prompt without a name has no expert
        assert (step == 0) == (found[:2].tolist() == [0, 0])  # even loads at first: nothing, to the last bit
        end_step(model)
        for layer, (_, chosen) in zip(layers, probabilities(model, IDS[0]), strict=True):
            # Only the first row counts: the second weighs nothing, the third names nothing.
            torch.testing.assert_close(layer.load, chosen[0].float().mean(dim=0))
            assert layer.choices.sum() == 0
    assert balance_of(model, weight) is None  # nothing was run since


def test_it_makes_a_busy_expert_less_likely_and_nothing_else():
    model = model_with(balance=1.0, target_modules=["q_proj"], layers_to_transform=[0])  # no layer below another
    for _, layer in routed_layers(model):
        layer.load = torch.tensor([1.0, 0.0, 0.0])
    model(input_ids=IDS[:2])
    before = [probability.mean(dim=(0, 1)) for probability, _ in probabilities(model, IDS[0])]
    model(input_ids=IDS[:2])
    balance_of(model, torch.ones(2)).sum().backward()
    moved = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    assert moved
    assert all("router" in name for name in moved)
    with torch.no_grad():
        for one in model.parameters():
            if one.grad is not None:
                one -= 0.5 * one.grad
    after = [probability.mean(dim=(0, 1)) for probability, _ in probabilities(model, IDS[0])]
    assert all(new[0] < old[0] for new, old in zip(after, before, strict=True))


def test_the_loss_of_a_step_has_it_by_weight_and_the_log_has_not():
    nll, weight = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.0, 3.0])
    trained, terms = micro_batch_terms(nll, weight, "step_weights", torch.tensor([0.1, 0.2]))
    assert float(trained) == pytest.approx(7 + 0.1 + 0.6)
    assert terms.tolist() == [7.0, 4.0]


def test_it_is_off_at_zero_and_in_evaluation():
    model = model_with(balance=0.0)
    model(input_ids=IDS)
    assert balance_of(model, torch.ones(3)) is None
    model = model_with()
    model.eval()(input_ids=IDS)
    assert balance_of(model, torch.ones(3)) is None


def test_a_checkpoint_has_the_loads():
    model, other = model_with(), model_with()
    for _, layer in routed_layers(model):
        layer.load = torch.tensor([0.5, 0.3, 0.2])
    state = traits_of(model).extra_state(model)
    assert len(state) == 4
    traits_of(other).load_extra_state(other, state)
    assert all(torch.equal(one, state[name]) for name, one in loads(other).items())
    set_loads(other, {})
    assert all(torch.equal(one, state[name]) for name, one in loads(other).items())
