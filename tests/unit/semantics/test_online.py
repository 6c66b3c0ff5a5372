import numpy as np
import pytest
import torch
from lit_semantic_peft.models import attach_adapter, fact_nll
from lit_semantic_peft.semantics import (
    ExpectedEmbeddingDistance,
    Focal,
    HiddenStateDistance,
    Online,
    Proximity,
    Remoteness,
    Surprisal,
    score_targets,
)
from lit_semantic_peft.semantics.step_losses import losses_and_online_weights
from lit_semantic_peft.tokens import FactEncoder, collate
from peft import LoraConfig

from fixtures.models import byte_level_bpe, tiny_llama

PAIRS = [("The capital of France is", "Paris"), ("It is", "the yen"), ("The head office is in", "Lund in the north")]


@pytest.fixture
def setting():
    encoder = FactEncoder(byte_level_bpe())
    model = attach_adapter(tiny_llama(len(encoder.tokenizer)), LoraConfig(r=2, target_modules="all-linear")).eval()
    return encoder, model, [encoder.encode(*pair) for pair in PAIRS]


@pytest.mark.parametrize("distance", [ExpectedEmbeddingDistance(), HiddenStateDistance(), Surprisal()])
@pytest.mark.parametrize("weighting", [Remoteness(2.0), Proximity(), Focal()])
def test_weights_are_those_of_a_separate_scoring_pass(setting, distance, weighting):
    encoder, model, encoded = setting
    online = Online(weighting)
    base = np.array([0.5, 3.0, 6.0, 9.0])
    online.prepare(distance, base)
    batch = collate(encoded, range(3), encoder.pad_id)  # with end tokens, as in training
    nll, weight = losses_and_online_weights(model, batch, online, None, distance, has_end=True)
    torch.testing.assert_close(nll, fact_nll(model, batch))
    assert not weight.requires_grad
    assert nll.requires_grad
    scores = score_targets(model, collate(encoded, range(3), encoder.pad_id, with_end=False), [distance])
    measured = scores.nll if weighting.needs_nll else scores.distances[distance.name]
    if distance.is_rank_based and not weighting.needs_nll:
        below = (torch.tensor(base)[None, :] < measured[:, None]).double().mean(dim=1)
        measured = 2 * below
    torch.testing.assert_close(weight, weighting.raw(measured).float(), atol=1e-5, rtol=1e-5)
    alone = [
        losses_and_online_weights(model, collate([one], [0], encoder.pad_id), online, None, distance, has_end=True)[1]
        for one in encoded
    ]
    torch.testing.assert_close(torch.cat(alone), weight, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_constant_weights(setting):
    encoder, model, encoded = setting
    batch = collate(encoded, range(3), encoder.pad_id)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nll, weight = losses_and_online_weights(
        model, batch, Online(Remoteness()), None, ExpectedEmbeddingDistance(), has_end=True
    )
    online = torch.autograd.grad((weight * nll).sum(), parameters)
    constant = torch.autograd.grad((torch.tensor(weight.tolist()) * fact_nll(model, batch)).sum(), parameters)
    for one, other in zip(online, constant, strict=True):
        torch.testing.assert_close(one, other)
