"""Which target tokens count: each weighting against its definition, token by token."""

import math

import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.semantics import (
    FLOW,
    Band,
    ConfidenceGate,
    ExpectedEmbeddingDistance,
    Focal,
    HiddenStateDistance,
    Online,
    Proximity,
    Remoteness,
    SemanticDistanceTerm,
    TokenDistance,
    Uniform,
)
from lit_semantic_peft.semantics.step_losses import losses_and_online_weights
from lit_semantic_peft.tokens import EncodedFact, FactEncoder, collate
from peft import LoraConfig

from fixtures.models import byte_level_bpe, tiny_llama

PAIRS = [("The capital of France is", "Paris"), ("The official currency of Japan is the", "yen"), ("It is in", "Lund")]


@pytest.fixture(scope="module")
def setting():
    """A model whose adapter is not at its start, and facts of one to some tokens, with end tokens."""
    torch.manual_seed(0)
    encoder = FactEncoder(byte_level_bpe())
    model = attach_adapter(tiny_llama(len(encoder.tokenizer)), LoraConfig(r=2, target_modules="all-linear")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return encoder, model, [encoder.encode(*pair) for pair in PAIRS]


def slow(model, encoded, contribution):
    """Loss of each fact, token by token: `contribution` gets p over the vocabulary, the target, and whether it ends."""
    table = model.get_base_model().get_input_embeddings().weight.double()
    losses = []
    for one in encoded:
        ids = torch.tensor([[*one.prompt_ids, *one.target_ids, *one.end_ids]])
        logits = model(input_ids=ids).logits[0].double()
        parts = []
        for position in range(len(one.prompt_ids), ids.shape[1]):
            p, target = logits[position - 1].softmax(-1), int(ids[0, position])
            expected = p @ table
            distance = 1 - torch.cosine_similarity(expected, table[target], dim=0)
            is_end = position >= len(one.prompt_ids) + len(one.target_ids)
            parts.append(contribution(p, target, distance, is_end))
        losses.append(torch.stack(parts).mean())
    return torch.stack(losses)


def gated(p, target, distance, is_end):
    is_out = int(p.argmax()) == target and p[target].item() > 0.001
    return torch.zeros((), dtype=torch.float64) * p[target] if is_out else -p[target].log()


def near(p, target, distance, is_end):
    weight = 1.0 if is_end else float(Proximity(3.0).raw(distance.detach()[None])[0])
    return -p[target].log() * weight


def focal(p, target, distance, is_end):
    weight = 1.0 if is_end else ((1 - p[target]) ** 2).item()
    return -p[target].log() * weight


def with_term(p, target, distance, is_end):
    return -p[target].log() + (0.0 if is_end else 2.5) * distance


CASES = [
    (ConfidenceGate(0.001), gated),
    (TokenDistance(Proximity(3.0)), near),
    (TokenDistance(Focal(2.0)), focal),
    (SemanticDistanceTerm(2.5), with_term),
]


@pytest.mark.parametrize(("weighting", "contribution"), CASES)
def test_losses_and_gradients_are_those_of_the_definition(setting, weighting, contribution):
    encoder, model, encoded = setting
    if isinstance(weighting, ConfidenceGate):  # make the model answer one of the facts, so that a gate closes
        best = model(input_ids=torch.tensor([encoded[0].prompt_ids])).logits[0, -1].argmax()
        encoded = [
            EncodedFact(encoded[0].prompt_ids, (int(best), *encoded[0].target_ids), encoded[0].end_ids),
            *encoded[1:],
        ]
    batch = collate(encoded, range(3), encoder.pad_id)
    found, online = losses_and_online_weights(model, batch, Uniform(), weighting, Remoteness(), has_end=True)
    assert online is None
    expected = slow(model, encoded, contribution)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    plain = slow(model, encoded, lambda p, target, distance, is_end: -p[target].log())
    assert (expected - plain).abs().max() > 1e-3, "the weighting changes nothing here"
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast, exact = (
        torch.cat([one.flatten() for one in torch.autograd.grad(losses.sum(), parameters)])
        for losses in (found, expected)
    )
    assert (fast - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("distance", [ExpectedEmbeddingDistance(), HiddenStateDistance()])
@pytest.mark.parametrize("weighting", [Proximity(), Remoteness(), Band()])
def test_near_far_and_band_weigh_tokens_of_their_own(setting, weighting, distance):
    """A fact's loss depends on no other fact of the batch."""
    encoder, model, encoded = setting
    tokens = TokenDistance(weighting, distance)
    whole, _ = losses_and_online_weights(
        model, collate(encoded, range(3), encoder.pad_id), Uniform(), tokens, distance, has_end=True
    )
    alone = [
        losses_and_online_weights(
            model, collate([one], [0], encoder.pad_id), Uniform(), tokens, distance, has_end=True
        )[0]
        for one in encoded
    ]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-5)


def test_online_fact_weights_do_not_see_token_weights(setting):
    encoder, model, encoded = setting
    batch = collate(encoded, range(3), encoder.pad_id)
    given = (model, batch, Online(Proximity()))
    plain = losses_and_online_weights(*given, None, ExpectedEmbeddingDistance(), has_end=True)
    both = losses_and_online_weights(*given, TokenDistance(Remoteness()), ExpectedEmbeddingDistance(), has_end=True)
    assert torch.equal(plain[1], both[1])
    assert not torch.allclose(plain[0], both[0])


def test_a_gate_of_1_lets_every_token_count(setting):
    encoder, model, encoded = setting
    batch = collate(encoded, range(3), encoder.pad_id)
    given = (model, batch, Uniform())
    plain, _ = losses_and_online_weights(*given, None, ExpectedEmbeddingDistance(), has_end=True)
    open_gate, _ = losses_and_online_weights(*given, ConfidenceGate(1.0), ExpectedEmbeddingDistance(), has_end=True)
    assert torch.equal(plain, open_gate)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConfidenceGate(0.0), r"`tau` must be in \(0, 1\], got 0\.0"),
        (lambda: ConfidenceGate(1.5), "`tau`"),
        (lambda: SemanticDistanceTerm(0.0), "`weight` must be a finite number above 0, got 0.0"),
        (lambda: SemanticDistanceTerm(math.inf), "`weight`"),
        (lambda: TokenDistance(Online(Proximity())), "TokenDistance"),
        (lambda: TokenDistance(FLOW()), "FLOW inside TokenDistance needs a fixed `tau`"),
    ],
)
def test_settings_out_of_range(build, message):
    with pytest.raises(InputError, match=message):
        build()
