import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_matrix, warm_up
from lit_semantic_peft.models.objective import fact_nll
from tiny_models import batches_of, encoded_facts, tiny_llama, with_adapter


def test_it_trains_the_adapter_and_nothing_else():
    model = with_adapter(tiny_llama(), at_init=True).eval()
    batches = batches_of(encoded_facts(8), 4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    initial = torch.stack([fact_nll(model, batch).mean() for batch in batches]).mean()
    seen = []
    losses = warm_up(model, batches, steps=30, learning_rate=1e-2, on_step=lambda *entry: seen.append(entry))
    final = torch.stack([fact_nll(model, batch).mean() for batch in batches]).mean()
    assert final < 0.8 * initial
    assert seen == list(zip(range(1, 31), losses, strict=True))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.grad is None
    assert not any(module.training for module in model.modules())


def test_it_equals_a_plain_loop():
    batches = batches_of(encoded_facts(6), 3)
    expected = with_adapter(tiny_llama(), at_init=True).train()
    optimizer = torch.optim.AdamW([p for p in expected.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(3)
    for step in range(4):
        optimizer.zero_grad()
        fact_nll(expected, batches[step % 2]).mean().backward()
        optimizer.step()
    model = with_adapter(tiny_llama(), at_init=True)
    torch.manual_seed(3)
    with torch.no_grad():
        warm_up(model, batches, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_no_steps_change_nothing():
    model = with_adapter(tiny_llama())
    batches = batches_of(encoded_facts(4), 2)
    before = gradient_matrix(model, batches)
    assert warm_up(model, batches, steps=0) == []
    assert torch.equal(gradient_matrix(model, batches), before)


def test_a_loss_that_is_not_finite_is_said():
    model = with_adapter(tiny_llama()).eval()
    model.get_input_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"the loss is nan before step 1"):
        warm_up(model, batches_of(encoded_facts(2), 2), steps=3)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "named"), [({"steps": -1}, "warmup_steps"), ({"steps": 1, "learning_rate": 0.0}, "learning_rate")]
)
def test_settings_out_of_range_are_named(arguments, named):
    with pytest.raises(InputError, match=f"`{named}`"):
        warm_up(with_adapter(tiny_llama()), batches_of(encoded_facts(2), 2), **arguments)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="0 trainable"):
        warm_up(tiny_llama().requires_grad_(False), batches_of(encoded_facts(2), 2), steps=1)
    with pytest.raises(ValueError, match="0 batches"):
        warm_up(with_adapter(tiny_llama()), [], steps=1)
