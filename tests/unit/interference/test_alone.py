import copy
import logging
from functools import partial

import pytest
import torch
from lit_semantic_peft.interference import fact_log_probability, train_alone
from lit_semantic_peft.tokens import collate
from peft import IA3Config, LoraConfig
from tiny_models import (
    ARCHITECTURES,
    assert_same,
    encoded_facts,
    float64_gradients,
    snapshot,
    tiny_llama,
    with_adapter,
)
from torch.optim import LBFGS, SGD, Adafactor, AdamW, Muon

RATES = [1e-2, 2e-2, 1e-2, 5e-3]
ADAMW = partial(AdamW, lr=7.0, weight_decay=0.1)  # the learning rate given here does not matter
ONE_AFTER_ANOTHER = "one after another"


def batch_of(num_facts=4):
    return collate(encoded_facts(num_facts), range(num_facts), pad_id=0)


@pytest.mark.parametrize("optimizer", [ADAMW, partial(SGD, lr=7.0, momentum=0.9)], ids=["adamw", "sgd"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_batched_run_equals_one_run_per_fact(architecture, optimizer, caplog):
    model = with_adapter(ARCHITECTURES[architecture](), at_init=True).train()
    with caplog.at_level(logging.INFO):
        batched = train_alone(model, batch_of(), RATES, optimizer)
    assert ONE_AFTER_ANOTHER not in caplog.text
    slow = train_alone(model, batch_of(), RATES, optimizer, one_by_one=True)
    torch.testing.assert_close(batched, slow, rtol=1e-3, atol=1e-3)
    untrained = fact_log_probability(model, batch_of()).cpu()
    assert (batched > untrained).all()


def test_the_slow_path_equals_a_plain_loop():
    facts = encoded_facts(3)
    model = with_adapter(tiny_llama(), at_init=True)
    found = train_alone(model, collate(facts, range(3), pad_id=0), [0.1, 0.05], partial(SGD, lr=1.0), one_by_one=True)
    for row, fact in enumerate(facts):
        plain = copy.deepcopy(model).double().eval()
        parameters = [parameter for parameter in plain.parameters() if parameter.requires_grad]
        for rate in (0.1, 0.05):
            gradient = float64_gradients(plain, [fact])[0]
            with torch.no_grad():
                for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
                    parameter -= rate * part.view_as(parameter)
        ids = (*fact.prompt_ids, *fact.target_ids, *fact.end_ids)
        log_p = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        expected = sum(float(log_p[at - 1, ids[at]]) for at in range(len(fact.prompt_ids), len(ids)))
        assert float(found[row]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_each_step_may_have_another_text(one_by_one):
    """Two rows that are asked the same, after the same texts in another order, against each row in a run of its own."""
    model = with_adapter(tiny_llama(), at_init=True)
    first, second, third = encoded_facts(3)
    asked = collate([first, first], range(2), pad_id=0)
    texts = [collate([second, third], range(2), pad_id=0), collate([third, second], range(2), pad_id=0)]
    found = train_alone(model, asked, RATES[:2], ADAMW, one_by_one=one_by_one, texts=texts)
    for row, own in enumerate(([second, third], [third, second])):
        single = [collate([text], [0], pad_id=0) for text in own]
        alone = train_alone(model, collate([first], [0], pad_id=0), RATES[:2], ADAMW, one_by_one=True, texts=single)
        torch.testing.assert_close(found[row], alone[0], rtol=1e-3, atol=1e-3)
    assert abs(found[0] - found[1]) > 1e-3, "the order of the texts counts"
    with pytest.raises(ValueError, match="`texts`"):
        train_alone(model, asked, RATES[:3], ADAMW, texts=texts)


@pytest.mark.parametrize(
    ("config", "optimizer"),
    [
        (LoraConfig(r=3, use_dora=True, target_modules=["q_proj"]), ADAMW),
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), ADAMW),
        (None, partial(Adafactor, lr=1.0)),
        (None, partial(Muon, lr=1.0)),
    ],
    ids=["dora", "ia3", "adafactor", "muon"],
)
def test_where_one_run_would_be_wrong_they_go_one_after_another(config, optimizer, caplog):
    model = with_adapter(tiny_llama(), config=config)
    with caplog.at_level(logging.INFO):
        found = train_alone(model, batch_of(), RATES, optimizer)
    assert ONE_AFTER_ANOTHER in caplog.text
    torch.testing.assert_close(found, train_alone(model, batch_of(), RATES, optimizer, one_by_one=True))


def test_the_start_is_where_it_says():
    model = with_adapter(tiny_llama(), at_init=True)
    start = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    from_start = train_alone(model, batch_of(), RATES, ADAMW)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    for one_by_one in (False, True):
        moved = train_alone(model, batch_of(), RATES, ADAMW, one_by_one=one_by_one)
        assert not torch.allclose(moved, from_start, atol=1e-2)
        again = train_alone(model, batch_of(), RATES, ADAMW, start=start, one_by_one=one_by_one)
        torch.testing.assert_close(again, from_start, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="`start`"):
        train_alone(model, batch_of(), RATES, ADAMW, start=start[:-1])


@pytest.mark.parametrize("one_by_one", [False, True])
def test_nothing_is_left_changed(one_by_one):
    model = with_adapter(tiny_llama()).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = snapshot(model)
    with torch.no_grad():
        train_alone(model, batch_of(), RATES, ADAMW, one_by_one=one_by_one)
    assert_same(before, snapshot(model))


def test_an_optimizer_that_fails_leaves_nothing_changed():
    model = with_adapter(tiny_llama()).train()
    before = snapshot(model)
    with pytest.raises(TypeError):
        train_alone(model, batch_of(), RATES, partial(LBFGS, lr=1.0), one_by_one=True)
    assert_same(before, snapshot(model))
