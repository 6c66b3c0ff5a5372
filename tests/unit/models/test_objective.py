import dataclasses

import pytest
import torch
import torch.nn.functional as F
from architectures import ADAPTERS, ARCHITECTURES, WithoutLogitsToKeep, rows, trained
from lit_semantic_peft.models.objective import (
    fact_nll,
    mean_per_fact,
    nll_of,
    predicting_mask,
    target_logits,
    token_nll,
    weight_normalizer,
)
from lit_semantic_peft.tokens import IGNORE_INDEX, EncodedFact, collate

from fixtures.models import tiny_llama


@pytest.fixture(params=ARCHITECTURES)
def base(request):
    return ARCHITECTURES[request.param]()


@pytest.fixture(params=ADAPTERS)
def model(request, base):
    make_config = ADAPTERS[request.param]
    return base if make_config is None else trained(base, make_config())


def full_token_nll(model, batch):
    """Every position through the projection; virtual tokens cut off in front."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    logits = logits[:, logits.shape[1] - batch.labels.shape[1] :]
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
    )
    return F.pad(losses, (1, 0))


def test_predicting_mask_is_one_before_each_label():
    labels = torch.tensor([[-100, -100, 4, 5, -100], [-100, 6, -100, -100, -100], [-100] * 5])
    assert predicting_mask(labels).int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [0] * 4]


@pytest.mark.parametrize("with_end", [True, False])
def test_losses_equal_those_of_full_logits(model, with_end):
    batch = collate(rows(7), range(7), 0, with_end=with_end)
    with torch.no_grad():
        expected = full_token_nll(model, batch)
        assert_close = torch.testing.assert_close
        assert_close(token_nll(model, batch), expected, atol=2e-6, rtol=1e-6)
        count = (batch.labels != IGNORE_INDEX).sum(dim=1)
        assert_close(fact_nll(model, batch), expected.sum(dim=1) / count, atol=2e-6, rtol=1e-6)
        logits, targets, _ = target_logits(model, batch)
    assert logits.shape == (int(count.sum()), 61)
    assert targets.tolist() == batch.labels[batch.labels != IGNORE_INDEX].tolist()
    assert expected.std() > 0.1


def test_an_adapter_that_is_switched_off_leaves_the_base(base):
    batch = collate(rows(5), range(5), 0)
    with torch.no_grad():
        expected = fact_nll(base, batch)
        for name, make_config in ADAPTERS.items():
            if make_config is None:
                continue
            model = trained(base, make_config())
            changed = fact_nll(model, batch)
            with model.disable_adapter():
                torch.testing.assert_close(fact_nll(model, batch), expected, msg=name)
            torch.testing.assert_close(fact_nll(model, batch), changed, msg=name)
            assert (changed - expected).abs().max() > 0.01, name
            base = model.unload() if name == "lora" else model.get_base_model()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_cannot_keep_some_logits_gives_the_same(architecture):
    model = ARCHITECTURES[architecture]()
    batch = collate(rows(6), range(6), 0)
    wrapped = WithoutLogitsToKeep(model)
    torch.testing.assert_close(token_nll(wrapped, batch), token_nll(model, batch), atol=1e-6, rtol=1e-6)


def test_only_target_positions_reach_the_projection(base):
    seen = []
    handle = base.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    batch = collate(rows(6), range(6), 0)
    fact_nll(base, batch)
    handle.remove()
    assert [shape.numel() // shape[-1] for shape in seen] == [int((batch.labels != IGNORE_INDEX).sum())]


def test_more_padding_changes_nothing(model):
    batch = collate(rows(5), range(5), 0)
    wide = dataclasses.replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, 6), value=0),
        attention_mask=F.pad(batch.attention_mask, (0, 6)),
        labels=F.pad(batch.labels, (0, 6), value=IGNORE_INDEX),
    )
    with torch.no_grad():
        narrow_nll, wide_nll = fact_nll(model, batch), fact_nll(model, wide)
        one_by_one = torch.cat([fact_nll(model, collate([row], [0], 0)) for row in rows(5)])
    torch.testing.assert_close(wide_nll, narrow_nll, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(one_by_one, narrow_nll, atol=2e-6, rtol=1e-6)


def test_gradients_equal_those_of_full_logits():
    model = trained(tiny_llama(), ADAPTERS["lora"]())
    batch = collate(rows(4), range(4), 0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = (batch.labels != IGNORE_INDEX).sum(dim=1)
    fast = torch.autograd.grad((fact_nll(model, batch) * torch.tensor([0.0, 0.5, 2.0, 1.0])).sum(), parameters)
    slow_nll = full_token_nll(model, batch).sum(dim=1) / count
    slow = torch.autograd.grad((slow_nll * torch.tensor([0.0, 0.5, 2.0, 1.0])).sum(), parameters)
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    assert any(gradient.abs().max() > 1e-3 for gradient in fast)


@pytest.mark.parametrize("adapter", ["lora", "prompt_tuning", "prefix_tuning"])
def test_a_batch_without_targets_is_a_zero_that_backward_can_pass(adapter):
    model = trained(tiny_llama(), ADAPTERS[adapter]())
    batch = collate(rows(3), range(3), 0)
    empty = dataclasses.replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))
    loss = fact_nll(model, empty)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_row_without_target_costs_nothing_and_changes_no_other():
    model = tiny_llama()
    batch = collate([*rows(2), EncodedFact((5, 6), (), ())], range(3), 0)
    nll = fact_nll(model, batch)
    assert nll[2] == 0
    torch.testing.assert_close(nll[:2], fact_nll(model, collate(rows(2), range(2), 0)), atol=1e-6, rtol=1e-6)


def test_losses_are_float32_whatever_the_base_is():
    model = tiny_llama().to(torch.bfloat16)
    nll = fact_nll(model, collate(rows(3), range(3), 0))
    assert nll.dtype == torch.float32
    assert nll.isfinite().all()


def test_a_row_that_is_not_finite_spoils_no_other_and_float16_does_not_overflow():
    labels = torch.tensor([[-100, 2], [-100, 3]])
    logits = torch.zeros(2, 70_000, dtype=torch.float16) - 3  # their sum is no float16
    assert mean_per_fact(nll_of(logits, torch.tensor([2, 3])), labels).isfinite().all()
    logits[0, 2] = -torch.inf
    assert mean_per_fact(nll_of(logits, torch.tensor([2, 3])), labels).isfinite().tolist() == [False, True]


def test_weight_normalizer():
    weights = torch.tensor([0.0, 0.5, 2.0, 0.0])
    assert weight_normalizer(weights, "step_weights").item() == 2.5
    assert weight_normalizer(weights, "step_count").item() == 2.0
    assert weight_normalizer(torch.zeros(3), "step_count").item() == 0.0
