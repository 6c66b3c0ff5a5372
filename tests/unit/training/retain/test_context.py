"""Batches of retained texts."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain import context
from lit_semantic_peft.training.retain.context import RetainContext

from fixtures.models import tiny_llama

ROWS = [EncodedFact((5,), tuple(range(6, 6 + number))) for number in (3, 1, 4, 2, 0, 5)]


@pytest.mark.parametrize(
    ("batch_size", "most_targets", "expected"),
    [(6, 1000, [[5, 2, 0, 3, 1, 4]]), (4, 1000, [[5, 2, 0, 3], [1, 4]]), (6, 6, [[5], [2], [0, 3, 1, 4]])],
)
def test_batches_are_as_small_as_their_logits_need(monkeypatch, batch_size, most_targets, expected):
    model = tiny_llama()
    monkeypatch.setattr(context, "_MOST_LOGITS", most_targets * model.config.vocab_size)
    encoder = SimpleNamespace(pad_id=0)
    rows = RetainContext(model, None, encoder, None, {}, 0, batch_size, nullcontext)
    found = list(rows.batches(ROWS, "read"))
    assert [places for places, _ in found] == expected
    for places, batch in found:
        assert batch.attention_mask.sum(1).tolist() == [len(ROWS[place]) for place in places]


def test_a_row_that_is_larger_than_the_room_stands_alone(monkeypatch):
    monkeypatch.setattr(context, "_MOST_LOGITS", 1)
    rows = RetainContext(tiny_llama(), None, SimpleNamespace(pad_id=0), None, {}, 0, 8, nullcontext)
    assert [places for places, _ in rows.batches(ROWS[:3], "read")] == [[2], [0], [1]]
    assert list(rows.batches([], "read")) == []
