import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics import RedundancyFilter, ScoringContext, TextEmbedding, redundancy
from lit_semantic_peft.tokens import FactEncoder

from fixtures.models import byte_level_bpe, tiny_llama
from unit.semantics.tables import same_in_any_order, table


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def one_by_one(distance, embedding, prompt_similarity, target_similarity):
    """The definition: facts from near to far, each against all that are kept."""
    kept, reasons = [], [None] * len(distance)
    for row in sorted(range(len(distance)), key=lambda row: (distance[row], row)):
        near = [other for other in kept if embedding[row, 0] @ embedding[other, 0] >= prompt_similarity]
        same = [embedding[row, 1] @ embedding[other, 1] >= target_similarity for other in near]
        if any(same):
            reasons[row] = "near_duplicate"
        elif near:
            reasons[row] = "contradiction"
        else:
            kept.append(row)
    return tuple(reasons)


@pytest.mark.parametrize(("block", "leading"), [(2, (31, 63)), (7, (1,)), (2048, (2, 8, 24))])
def test_equals_the_definition_whatever_the_blocks_and_the_bound(monkeypatch, block, leading):
    monkeypatch.setattr(redundancy, "BLOCK", block)
    monkeypatch.setattr(redundancy, "LEADING", leading)
    rng = np.random.default_rng(0)
    for size in (2, 10, 120):
        centers = rng.normal(size=(max(size // 3, 1), 2, 40))
        rows = centers[rng.integers(0, len(centers), size)] + 0.12 * rng.normal(size=(size, 2, 40))
        swapped = rng.random(size) < 0.3
        rows[swapped, 1] = rng.normal(size=(int(swapped.sum()), 40))
        embedding = unit(rows)
        distance = rng.integers(0, 4, size) / 2
        selection = RedundancyFilter(0.97, 0.9).select(table(distance, feature=embedding))
        assert selection.reason == one_by_one(distance, embedding, 0.97, 0.9)
    assert {"near_duplicate", "contradiction", None} == set(selection.reason)
    assert same_in_any_order(RedundancyFilter(0.97, 0.9), table(distance, feature=embedding))


def test_only_what_is_asked_for_is_dropped():
    embedding = np.zeros((3, 2, 2))
    embedding[:, 0, 0] = 1.0
    embedding[:2, 1, 0] = 1.0
    embedding[2, 1, 1] = 1.0
    facts = table([0.1, 0.2, 0.3], feature=embedding)
    assert RedundancyFilter(drops=["contradiction"]).select(facts).reason == (None, None, "contradiction")
    assert RedundancyFilter(drops=["near_duplicate"]).select(facts).reason == (None, "near_duplicate", None)
    assert RedundancyFilter().select(table([0.4])).reason == (None,)
    facts = table([0.1, 0.2, 0.3], feature=embedding * np.array([1.0, 0.0, 1.0])[:, None, None])
    assert RedundancyFilter().select(facts).reason == (None, None, "contradiction")  # no text, no likeness
    for settings in ({"prompt_similarity": 0.0}, {"target_similarity": 1.2}, {"drops": ["both"]}, {"drops": []}):
        with pytest.raises(InputError, match=f"`{next(iter(settings))}`"):
            RedundancyFilter(**settings)


def test_token_embeddings_look_past_the_template():
    encoder = FactEncoder(byte_level_bpe())
    model = tiny_llama(len(encoder.tokenizer))
    names = ["France", "Mongolia", "Zorvex", "Japan", "Danube", "Calonex"]
    facts = [Fact(name, f"It is well known that the head office of {name} is in the", "Lund") for name in names]
    facts += [Fact("again", "It is well known that the head office of France is in the", "Paris")]
    embedding = TextEmbedding().measure(ScoringContext(lambda: model, encoder), facts)
    assert embedding.shape == (7, 2, 32)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1.0)
    similarity = embedding[:, 0] @ embedding[:, 0].T
    assert similarity[0, 6] == pytest.approx(1.0)
    assert np.triu(similarity[:6, :6], 1).max() < 0.97
    selection = RedundancyFilter().select(table(np.arange(7.0), feature=embedding))
    assert selection.reason == (None,) * 6 + ("contradiction",)
