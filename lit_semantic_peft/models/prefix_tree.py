"""Facts that begin alike share what they have in common.

In a causal model the state at a token depends on the tokens before it and on nothing else. So "The capital of Peru is
Lima" and "The capital of Peru was" need the states of "The capital of Peru" only once. The rows of a batch become the
paths of a tree (a trie of token ids); its nodes stand in one sequence, each attends to its own ancestors, and the
gradients of all facts below a node add up in it. Losses and gradients are those of the rows, up to rounding; there is
no padding. What is shared also shares its dropout noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_semantic_peft.models.llama_like import llama_backbone
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch

MAX_NODES = 512
"""Longest sequence that a tree is put into: attention costs grow with its square."""


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """The distinct prefixes of a batch's rows, in R sequences of at most N nodes.

    A row's last token is no node: nothing is predicted from it.

    Attributes:
        input_ids: int64 `(R, N)`, the token of each node; 0 where a sequence has no node.
        position_ids: int64 `(R, N)`, the depth of each node in its fact.
        attends: bool `(R, N, N)`, from each node to its ancestors and itself.
        predicts: bool `(R, N)`, nodes whose output predicts a target token.
        predictor: int64, for each target token of the batch, in row-major order, which of the predicting nodes (in
            row-major order) predicts it.
        source: int64 `(R, N)`, a place of each node in the batch: row · T + column.
    """

    input_ids: Tensor
    position_ids: Tensor
    attends: Tensor
    predicts: Tensor
    predictor: Tensor
    source: Tensor

    def attention_mask(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        """The mask as the model's attention takes it, `(R, 1, N, N)`.

        Args:
            model: A Llama-like model.
            dtype: Type of an additive mask, which eager attention needs.

        Raises:
            InputError: If the model is of another kind.
        """
        return attention_mask(model, self.attends, dtype)

    def gather(self, values: Tensor) -> Tensor:
        """Values of the batch's tokens, `(B, T, H)`, as values of the nodes, `(R, N, H)`."""
        return values.flatten(0, 1)[self.source]


def attention_mask(model: nn.Module, attends: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turns who attends to whom into what a model's attention takes.

    Args:
        model: A Llama-like model.
        attends: bool `(R, Q, K)`.
        dtype: Type of an additive mask, which eager attention needs.

    Returns:
        `(R, 1, Q, K)`, bool or additive.

    Raises:
        InputError: If the model is of another kind.
    """
    backbone = llama_backbone(model, "share_prefixes")
    mask = attends.unsqueeze(1)
    if backbone.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def prefix_tree(batch: Batch, max_nodes: int = MAX_NODES) -> PrefixTree:
    """Builds the tree of a batch's rows.

    Args:
        batch: The facts, padded on either side.
        max_nodes: Longest sequence; where the tree has more nodes, facts go on in a further sequence and share
            nothing with the one before.
    """
    columns = [mask.nonzero().flatten().tolist() for mask in batch.attention_mask.cpu().bool()]
    ids = batch.input_ids.tolist()
    labels = batch.labels.tolist()
    tokens = [[ids[row][column] for column in columns[row]] for row in range(len(batch))]
    sequences, paths = _grow(tokens, max_nodes)
    shape = (len(sequences), max(len(nodes) for nodes in sequences))
    input_ids = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    source = torch.zeros(shape, dtype=torch.long)
    predicts = torch.zeros(shape, dtype=torch.bool)
    attends = torch.eye(shape[1], dtype=torch.bool).repeat(shape[0], 1, 1)
    width = batch.input_ids.shape[1]
    predictor: list[int] = []
    for row, (sequence, path) in enumerate(paths):
        nodes = torch.tensor(path, dtype=torch.long)
        input_ids[sequence, nodes] = torch.tensor(tokens[row][: len(path)], dtype=torch.long)
        position_ids[sequence, nodes] = torch.arange(len(path))
        source[sequence, nodes] = row * width + torch.tensor(columns[row][: len(path)], dtype=torch.long)
        attends[sequence, nodes[:, None], nodes] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
        at = [path[place - 1] for place, column in enumerate(columns[row]) if labels[row][column] != IGNORE_INDEX]
        predicts[sequence, at] = True
        predictor += [sequence * shape[1] + node for node in at]
    rank = predicts.flatten().cumsum(0) - 1
    parts = (input_ids, position_ids, attends, predicts, rank[torch.tensor(predictor, dtype=torch.long)], source)
    return PrefixTree(*(part.to(batch.input_ids.device) for part in parts))


def _grow(tokens: Sequence[Sequence[int]], max_nodes: int) -> tuple[list[list[int]], list[tuple[int, list[int]]]]:
    """Nodes of each sequence (their tokens), and for each row its sequence and its path of node numbers."""
    inputs = [row[:-1] for row in tokens]
    sequences: list[list[int]] = [[]]
    paths: list[tuple[int, list[int]]] = [(0, [])] * len(tokens)
    before: Sequence[int] = ()
    path: list[int] = []
    # In sorted order a row shares most with the one just before it.
    for row in sorted(range(len(tokens)), key=lambda one: inputs[one]):
        current = inputs[row]
        shared = next((at for at, pair in enumerate(zip(before, current, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(before), len(current)) if shared is None else shared
        if len(sequences[-1]) + len(current) - shared > max_nodes and sequences[-1]:
            sequences.append([])
            shared = 0
        nodes = sequences[-1]
        path = [*path[:shared], *range(len(nodes), len(nodes) + len(current) - shared)]
        nodes += current[shared:]
        paths[row] = (len(sequences) - 1, path)
        before = current
    return sequences, paths
