import dataclasses

import pytest
import torch
from lit_semantic_peft.tokens import IGNORE_INDEX, EncodedFact, collate

ROWS = [EncodedFact((5, 6, 7), (8, 9), (2,)), EncodedFact((10,), (11,), (2,)), EncodedFact((12, 13), (14, 15, 16))]


def test_rows_are_padded_on_the_right():
    batch = collate(ROWS, [4, 0, 7], pad_id=3)
    assert len(batch) == 3
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 2], [10, 11, 2, 3, 3, 3], [12, 13, 14, 15, 16, 3]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    none = IGNORE_INDEX
    assert batch.labels.tolist() == [
        [none, none, none, 8, 9, 2],
        [none, 11, 2, none, none, none],
        [none, none, 14, 15, 16, none],
    ]
    assert batch.fact_index.tolist() == [4, 0, 7]
    assert batch.loss_weight.tolist() == [1.0, 1.0, 1.0]
    assert batch.loss_weight.dtype == torch.float32
    assert {batch.input_ids.dtype, batch.labels.dtype, batch.attention_mask.dtype, batch.fact_index.dtype} == {
        torch.int64
    }


def test_the_end_token_is_a_label_in_training_only():
    trained, scored = collate(ROWS, range(3), 0), collate(ROWS, range(3), 0, with_end=False)
    assert (trained.labels != IGNORE_INDEX).sum(dim=1).tolist() == [3, 2, 3]
    assert (scored.labels != IGNORE_INDEX).sum(dim=1).tolist() == [2, 1, 3]
    assert scored.input_ids.shape == (3, 5)
    assert 2 not in scored.input_ids


def test_padding_with_the_end_token_is_still_no_label():
    batch = collate(ROWS, range(3), pad_id=2)
    assert (batch.labels[1] != IGNORE_INDEX).tolist() == [False, True, True, False, False, False]


def test_loss_weights_follow_their_rows():
    assert collate(ROWS, range(3), 0, loss_weight=[0.0, 2.5, 0.5]).loss_weight.tolist() == [0.0, 2.5, 0.5]


def test_rows_and_indices_must_be_equally_many_and_present():
    with pytest.raises(ValueError, match=r"empty|arg"):
        collate([], [], 0)


def test_to_moves_every_tensor():
    moved = collate(ROWS, range(3), 0).to("meta")
    assert all(getattr(moved, field.name).device.type == "meta" for field in dataclasses.fields(moved))


def test_fillers_weigh_nothing_and_are_known_as_such():
    batch = collate(ROWS, range(3), 0, loss_weight=[0.0, 2.5, 0.5])
    assert batch.is_filler.tolist() == [False, False, False]
    filled = batch.with_fillers(1).to("cpu")
    assert filled.is_filler.tolist() == [False, False, True]
    assert filled.loss_weight.tolist() == [0.0, 2.5, 0.0]
    assert batch.loss_weight.tolist() == [0.0, 2.5, 0.5]
