"""A micro-batch as prefix trees: tokens that rows share from their beginning stand once, and there is no padding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_semantic_peft.tokens.collate import IGNORE_INDEX, Batch

_HIDDEN = torch.finfo(torch.float16).min
"""Added to a score that must not count: its exponential is 0 in every floating point type, and it is finite in each."""


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """The tokens of a batch from which something is predicted, as P trees of at most N nodes, padded to N.

    A node stands for the same token after the same tokens in one or several rows. It sees its ancestors and itself.

    Attributes:
        row: int64 `(P, N)`, a row of the batch that has the node's token.
        depth: int64 `(P, N)`, its position in that row.
        is_visible: bool `(P, N, N)`, whether the second node is the first one or an ancestor of it. A padding node sees
            itself alone.
        path: int64 `(B, L)`, the node of each position of the batch's rows, counted over all trees, padding included;
            0 where a row has no node.
        predicting: int64 `(M,)`, for each of the batch's M targets in row-major order the node that predicts it,
            counted in the same way.
    """

    row: Tensor
    depth: Tensor
    is_visible: Tensor
    path: Tensor
    predicting: Tensor

    def to(self, device: torch.device | str) -> "PrefixTree":
        """The same trees on another device.

        Args:
            device: The device.
        """
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__slots__})

    @property
    def projected(self) -> tuple[Tensor, Tensor | None]:
        """The nodes whose output is projected to the vocabulary, and which of them predicts each target.

        Returns:
            int64 `(U,)`, counted as in `predicting`; and int64 `(M,)`, None where each target has a node of its own, in
            the order of the targets.
        """
        nodes, of_target = torch.unique(self.predicting, return_inverse=True)
        return (self.predicting, None) if len(nodes) == len(self.predicting) else (nodes, of_target)

    def attention_mask(self, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """What is added to the attention scores, `(P, 1, N, N)`: 0 where a node is seen.

        Args:
            dtype: Its floating point type.
            window: Nodes that are seen at most, the node itself included, as a sliding window has them. None for all
                ancestors.
        """
        is_visible = self.is_visible
        if window is not None:
            is_visible = is_visible & (self.depth[:, :, None] - self.depth[:, None, :] < window)
        mask = torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device)
        return mask.masked_fill(~is_visible, _HIDDEN)[:, None]


def prefix_tree(batch: Batch, max_nodes: int = 512) -> PrefixTree | None:
    """The trees of a batch; None if nothing is predicted in it, or it is padded on the left.

    Cost: n log n in the rows, and memory for the square of the nodes of each tree.

    Args:
        batch: The facts.
        max_nodes: Nodes of a tree; more only where a single row needs them. What rows of different trees share stands
            in each.
    """
    is_predicted = batch.labels[:, 1:] != IGNORE_INDEX
    rows, positions = (found.tolist() for found in is_predicted.nonzero(as_tuple=True))
    if not rows or not batch.attention_mask[:, 0].all():
        return None
    num_fed = dict.fromkeys(rows, 0)
    num_fed.update((row, position + 1) for row, position in zip(rows, positions, strict=True))
    ids = {row: tokens[: num_fed[row]] for row, tokens in enumerate(batch.input_ids.tolist()) if row in num_fed}
    trees = [_paths(group, ids) for group in _groups(ids, max_nodes)]
    size = max(len(tree.nodes) for tree in trees)
    shape = (len(trees), size)
    row, depth = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    is_visible = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)
    path_of = torch.zeros((len(batch), max(num_fed.values())), dtype=torch.long)
    for number, tree in enumerate(trees):
        row[number, : len(tree.nodes)], depth[number, : len(tree.nodes)] = torch.tensor(tree.nodes).T
        for of_row, path in tree.paths.items():
            nodes = torch.tensor(path)
            later, earlier = torch.tril_indices(len(path), len(path))
            is_visible[number, nodes[later], nodes[earlier]] = True
            path_of[of_row, : len(path)] = number * size + nodes
    return PrefixTree(row, depth, is_visible, path_of, path_of[rows, positions]).to(batch.input_ids.device)


def cheaper_tree(batch: Batch, max_nodes: int = 512) -> PrefixTree | None:
    """The trees of a batch, if they have fewer nodes than the padded batch has tokens.

    Args:
        batch: The facts.
        max_nodes: As in `prefix_tree`.
    """
    tree = prefix_tree(batch, max_nodes)
    return tree if tree is not None and tree.row.numel() < batch.labels[:, 1:].numel() else None


@dataclass(frozen=True, slots=True)
class _Paths:
    """A tree: `(row, depth)` of each node, parents before children, and the nodes of each row from the root on."""

    nodes: list[tuple[int, int]]
    paths: dict[int, list[int]]


def _groups(ids: dict[int, list[int]], max_nodes: int) -> list[list[int]]:
    """The rows of each tree: neighbours in the order of their tokens, in trees of about equal size."""
    order = sorted(ids, key=lambda row: ids[row])
    added = [len(ids[row]) for row in order]
    for place in range(1, len(order)):
        added[place] -= _num_shared(ids[order[place - 1]], ids[order[place]])
    most = sum(added) / -(-sum(added) // max_nodes)
    groups: list[list[int]] = []
    size = 0
    for row, num_new in zip(order, added, strict=True):
        if not groups or size + num_new > max_nodes or size >= most:
            groups.append([])
            size, num_new = 0, len(ids[row])
        groups[-1].append(row)
        size += num_new
    return groups


def _paths(rows: Sequence[int], ids: dict[int, list[int]]) -> _Paths:
    nodes: list[tuple[int, int]] = []
    paths: dict[int, list[int]] = {}
    before: list[int] = []
    path: list[int] = []
    for row in rows:
        num_shared = _num_shared(before, ids[row])
        new = range(num_shared, len(ids[row]))
        path = [*path[:num_shared], *range(len(nodes), len(nodes) + len(new))]
        nodes += [(row, depth) for depth in new]
        paths[row], before = path, ids[row]
    return _Paths(nodes, paths)


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    least = min(len(left), len(right))
    return next((place for place in range(least) if left[place] != right[place]), least)
