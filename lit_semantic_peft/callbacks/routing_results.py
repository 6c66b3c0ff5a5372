"""Measures where an adapter of experts sends what: the load of experts, the subjects of each, who hurts whom."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_semantic_peft.adapters import Anchors
from lit_semantic_peft.adapters.routing import names_in
from lit_semantic_peft.evaluation import Question
from lit_semantic_peft.interference import InterferenceMatrix
from lit_semantic_peft.interference.experts import effective_experts, expert_shares, have_same_experts
from lit_semantic_peft.models import traits_of
from lit_semantic_peft.reports import ExpertRecord, PairsRecord, RoutingRecord
from lit_semantic_peft.training import SemanticPeftModule

_CONFLICT = -0.05  # as in `interference.influence.is_conflict`
_MOST_NAMED = 5


def measure_routing(module: SemanticPeftModule, matrix: InterferenceMatrix | None) -> RoutingRecord | None:
    """What opens an adapter that acts by names, and what its experts do with the kept facts, by their own prompts.

    Args:
        module: After its evaluation.
        matrix: The gradient matrix after training; None where it was not measured.

    Returns:
        None where the adapter does not act by names, or nothing was evaluated.
    """
    if module.evaluation is None or not traits_of(module.model).routes:
        return None
    anchors = module.model.active_peft_config.anchors
    prepared = module.data.prepared
    rows = list(prepared.kept_index)
    if anchors is None or not rows:
        return None
    batches = module.data.training_batches(rows, module.data.batches.micro_batch_size, with_end=False)
    shares = expert_shares(module.model, batches) if traits_of(module.model).has_experts else {}
    loads = {layer: _load(of_layer) for layer, of_layer in shares.items()}
    subjects = [prepared.facts[row].subject or "" for row in rows]
    opened, asked = _opened(anchors, module.model.get_input_embeddings(), module.data.questions)
    pairs = pairs_by_experts(list(shares.values()), rows, matrix) if shares and matrix is not None else {}
    return RoutingRecord(
        match=anchors.table.match,
        num_names=len(anchors.table.names),
        num_opened=opened,
        num_asked=asked,
        effective_experts=effective_experts(list(loads.values())) if loads else None,
        experts=tuple(one for layer, load in loads.items() for one in _experts(layer, load, shares[layer], subjects)),
        same_experts=pairs.get(True),
        other_experts=pairs.get(False),
    )


def _load(shares: Tensor) -> Tensor:
    """The mean over the facts whose prompts have a name, shares `(E,)`."""
    total = shares.sum(dim=0)
    return total / total.sum().clamp(min=1e-9)


def _experts(layer: str, load: Tensor, shares: Tensor, subjects: Sequence[str]) -> list[ExpertRecord]:
    names = list(dict.fromkeys(subjects))
    number = torch.tensor([names.index(one) for one in subjects])
    total = torch.zeros(len(names), shares.shape[1]).index_add(0, number, shares)
    share, most = (total / torch.bincount(number)[:, None]).max(dim=1)
    of_expert = [
        sorted(np.flatnonzero(most.numpy() == expert).tolist(), key=lambda at: -float(share[at]))
        for expert in range(len(load))
    ]
    return [
        ExpertRecord(layer, expert, float(load[expert]), len(places), tuple(names[at] for at in places[:_MOST_NAMED]))
        for expert, places in enumerate(of_expert)
    ]


def _opened(anchors: Anchors, embed: nn.Module, questions: Sequence[Question]) -> tuple[dict[str, int], dict[str, int]]:
    """Questions whose prompt has a name, and all questions, by kind; a text without a prompt counts as a whole."""
    asked: Counter[str] = Counter(one.kind for one in questions)
    opened: Counter[str] = Counter(one.kind for one in questions if names_in(_read(one), anchors, embed))
    return {kind: opened[kind] for kind in asked}, dict(asked)


def _read(question: Question) -> tuple[int, ...]:
    """The tokens that decide: the prompt's, or all of a text that has none."""
    if question.prompt or question.encoded is None:
        return question.prompt_ids
    return (*question.encoded.prompt_ids, *question.encoded.target_ids)


def pairs_by_experts(
    shares: Sequence[Tensor], rows: Sequence[int], matrix: InterferenceMatrix
) -> Mapping[bool, PairsRecord]:
    """The pairs of measured facts, by whether they have the same experts.

    Args:
        shares: Of each layer, shares of the choices, `(k, E)`.
        rows: Fact index of each of these k facts.
        matrix: The gradient matrix; of some of them, and perhaps of others.

    Returns:
        Empty where fewer than two facts were measured.
    """
    place_of = {row: place for place, row in enumerate(rows)}
    measured = [(at, place_of[int(row)]) for at, row in enumerate(matrix.fact_index) if int(row) in place_of]
    if len(measured) < 2:
        return {}
    at, places = (list(one) for one in zip(*measured, strict=True))
    cosine: NDArray[np.float64] = matrix.gradient_cosine()[np.ix_(at, at)]
    is_same = have_same_experts([one[places] for one in shares])
    upper = np.triu(np.ones_like(is_same), k=1) & np.isfinite(cosine)

    def record(chosen: NDArray[np.bool_]) -> PairsRecord:
        values = cosine[chosen]
        if not len(values):
            return PairsRecord(0)
        return PairsRecord(len(values), float(values.mean()), float((values < _CONFLICT).mean()))

    return {side: record(upper & (is_same == side)) for side in (True, False)}
