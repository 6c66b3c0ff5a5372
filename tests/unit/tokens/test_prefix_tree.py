"""A prefix tree holds every row's tokens, each shared beginning once, and nothing that predicts nothing."""

import random

import pytest
import torch
from lit_semantic_peft.tokens import EncodedFact, cheaper_tree, collate, prefix_tree

HIDDEN = -65504.0


def seen_text(tree, batch, flat):
    """The tokens that a node sees, in order of depth."""
    number, node = divmod(flat, tree.row.shape[1])
    seen = tree.is_visible[number, node].nonzero()[:, 0]
    seen = seen[tree.depth[number, seen].argsort()]
    assert tree.depth[number, seen].tolist() == list(range(len(seen)))
    return batch.input_ids[tree.row[number, seen], tree.depth[number, seen]].tolist()


def texts_before_targets(batch):
    return [
        batch.input_ids[row, : place + 1].tolist() for row, place in (batch.labels[:, 1:] != -100).nonzero().tolist()
    ]


def some_rows(seed, num_rows=12):
    chance = random.Random(seed)
    return [
        EncodedFact(
            tuple(chance.choices((5, 6), k=chance.randint(1, 5))),
            tuple(chance.choices((5, 6, 7), k=chance.randint(1, 3))),
            (1,) * chance.randint(0, 1),
        )
        for _ in range(num_rows)
    ]


@pytest.mark.parametrize("max_nodes", [1, 7, 16, 512])
@pytest.mark.parametrize("seed", range(6))
def test_each_target_is_predicted_from_exactly_its_own_text(seed, max_nodes):
    batch = collate(some_rows(seed), range(12), pad_id=0)
    tree = prefix_tree(batch, max_nodes)
    expected = texts_before_targets(batch)
    assert [seen_text(tree, batch, flat) for flat in tree.predicting.tolist()] == expected
    if max_nodes == 512:
        fed = [batch.input_ids[row, : int(mask.sum()) - 1].tolist() for row, mask in enumerate(batch.attention_mask)]
        assert tree.row.shape == (1, len({tuple(ids[:end]) for ids in fed for end in range(1, len(ids) + 1)}))
    else:
        longest = max(len(text) for text in expected)
        assert tree.row.shape[1] <= max(max_nodes, longest)
    for row, ids in enumerate(batch.input_ids.tolist()):
        length = int(batch.attention_mask[row].sum()) - 1
        texts = [seen_text(tree, batch, flat) for flat in tree.path[row, :length].tolist()]
        assert texts == [ids[:end] for end in range(1, length + 1)]
    diagonal = tree.is_visible.diagonal(dim1=1, dim2=2)
    assert diagonal.all(), "each node sees itself, padding too, so that no row of the attention is empty"


def test_what_predicts_nothing_is_not_there():
    rows = [EncodedFact((5, 6), (7,)), EncodedFact((5, 6), (7,)), EncodedFact((5,), (6,)), EncodedFact((5, 6), (8, 9))]
    batch = collate(rows, range(4), pad_id=0)
    tree = prefix_tree(batch)
    nodes = [seen_text(tree, batch, flat) for flat in range(tree.row.numel())]
    assert nodes == [[5], [5, 6], [5, 6, 8]]  # a fact twice, a fact that begins another one, and no last token
    assert tree.predicting.tolist() == [1, 1, 0, 1, 2]
    nodes, of_target = tree.projected
    assert nodes.tolist() == [0, 1, 2]
    assert of_target.tolist() == [1, 1, 0, 1, 2]
    single = prefix_tree(collate(rows[:1], range(1), pad_id=0))
    assert single.projected[1] is None


def test_a_row_without_target_is_not_fed():
    batch = collate([EncodedFact((5, 6), (7,)), EncodedFact((8, 9), ())], range(2), pad_id=0)
    assert prefix_tree(batch).row.tolist() == [[0, 0]]
    assert prefix_tree(collate([EncodedFact((8, 9), ())], [0], pad_id=0)) is None
    batch.attention_mask[0, 0] = 0
    assert prefix_tree(batch) is None


def test_a_tree_that_saves_nothing_is_not_cheaper():
    rows = [EncodedFact((5, 6), (7,)), EncodedFact((5, 8), (7,)), EncodedFact((9, 6), (7,))]
    assert cheaper_tree(collate(rows[1:], range(2), pad_id=0)) is None
    assert cheaper_tree(collate(rows, range(3), pad_id=0)).row.shape == (1, 5)


def test_the_mask_of_a_window_is_cut_by_depth():
    rows = [EncodedFact((5, 6, 7), (8, 9)), EncodedFact((5, 6, 7), (4, 3, 2))]
    tree = prefix_tree(collate(rows, range(2), pad_id=0))
    mask = tree.attention_mask(torch.float32, window=2)[0, 0]
    depth = tree.depth[0]
    for node, row in enumerate(mask.tolist()):
        seen = [other for other, value in enumerate(row) if value == 0]
        assert sorted(depth[seen].tolist()) == list(range(max(0, int(depth[node]) - 1), int(depth[node]) + 1))
        assert {value for value in row if value} <= {HIDDEN}
    whole = tree.attention_mask(torch.bfloat16)
    assert whole.dtype == torch.bfloat16
    assert torch.equal(whole[0, 0] == 0, tree.is_visible[0])
    assert whole.isfinite().all()
