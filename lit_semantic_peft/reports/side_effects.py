"""Side effects of training: a matrix of edited group by evaluated group."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, permutation_test

FALSE_DISCOVERY_RATE = 0.05
NO_RELATION = "no relation"
TAUGHT, UNTAUGHT = "facts taught", "facts not taught"
_OF_PROBE = {"paraphrase": "paraphrases", "portability": "conclusions", "neighborhood": "neighbours"}
EVALUATED = (TAUGHT, *_OF_PROBE.values(), UNTAUGHT)
"""The evaluated groups: columns of the matrix, from what should move to what should not."""

SIDE_EFFECTS = (_OF_PROBE["neighborhood"], UNTAUGHT)
"""Evaluated groups that should stay as they were."""

_RESAMPLES = 2000
_NUMBERS_AT_ONCE = 2_000_000  # 16 MB of resampled values


@dataclass(frozen=True, slots=True)
class SideEffect:
    """A cell of the matrix.

    Attributes:
        relation: The edited group.
        evaluated: The evaluated group, one of `EVALUATED`.
        nll_delta: Mean over facts of the likelihood loss after minus before, nats per token; positive is harm. A fact
            with several probes counts once.
        num_facts: Number of facts.
        p_value: How often signs drawn at random give a mean as far from 0, two-sided, in (0, 1].
        exceeds_chance: Whether the cell is still there at a false discovery rate of 5 % over all cells of the evaluated
            groups that should not move; never set elsewhere.
    """

    relation: str
    evaluated: str
    nll_delta: float
    num_facts: int
    p_value: float
    exceeds_chance: bool


@dataclass(frozen=True)
class SideEffects:
    """The matrix of a run.

    One run teaches all of its relations at once. So a row is not what one relation did: it is what moved where that
    relation was edited, by the relation itself or by the others. Only the rows of relations that were not taught can
    be attributed to other relations, all of them together. To separate two relations, teach each in a run of its own.

    Attributes:
        relations: The edited groups, taught ones first, each by name.
        taught: The relations of kept facts.
        cells: What was measured, by relation and evaluated group.
    """

    relations: tuple[str, ...]
    taught: frozenset[str]
    cells: dict[tuple[str, str], SideEffect]

    @property
    def beyond_chance(self) -> list[SideEffect]:
        """The side effects that exceed chance, the largest first."""
        found = [cell for cell in self.cells.values() if cell.exceeds_chance]
        return sorted(found, key=lambda cell: -abs(cell.nll_delta))


def measure_side_effects(facts: pa.Table, probes: pa.Table | None = None, seed: int = 0) -> SideEffects:
    """Compares base model and trained model by relation.

    The edited group of a fact, and of what is asked beside it, is the fact's relation; a fact of any split that was not
    trained is evaluated as `facts not taught`. Probes count beside kept facts alone, and one of several facts of a
    relation once, for the first of them.

    Args:
        facts: The fact table.
        probes: The probe table.
        seed: Of the permutation test.

    Returns:
        The matrix; without cells where nothing was measured.
    """
    relation_of: dict[str, str] = {}
    is_taught: dict[str, bool] = {}
    deltas: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    columns = ["fact_id", "relation", "split", "kept", "trained_from_epoch", "nll_before", "nll_after"]
    for row in facts.select(columns).to_pylist():
        fact_id = row["fact_id"]
        relation_of[fact_id] = row["relation"] or NO_RELATION
        is_trained = row["kept"] is not False or row["trained_from_epoch"] is not None
        is_taught[fact_id] = row["split"] in (None, "", "inject") and is_trained
        if row["nll_before"] is not None and row["nll_after"] is not None:
            evaluated = TAUGHT if is_taught[fact_id] else UNTAUGHT
            deltas[relation_of[fact_id], evaluated][fact_id].append(row["nll_after"] - row["nll_before"])
    seen: set[tuple[str, ...]] = set()
    for row in probes.to_pylist() if probes is not None else []:
        fact_id, is_measured = row["fact_id"], row["nll_before"] is not None and row["nll_after"] is not None
        if row["kind"] in _OF_PROBE and is_taught.get(fact_id) and is_measured:
            cell = relation_of[fact_id], _OF_PROBE[row["kind"]]
            question = (*cell, row["prompt"], row["target"])
            if question not in seen:  # a probe of several facts is one observation
                seen.add(question)
                deltas[cell][fact_id].append(row["nll_after"] - row["nll_before"])
    means = {cell: np.array([np.mean(values) for values in found.values()]) for cell, found in deltas.items()}
    p_values = {cell: _p_value(values, seed) for cell, values in means.items()}
    taught = frozenset(relation_of[fact_id] for fact_id, flag in is_taught.items() if flag)
    beyond = _beyond_chance({cell: p for cell, p in p_values.items() if cell[1] in SIDE_EFFECTS})
    return SideEffects(
        relations=tuple(sorted({relation for relation, _ in means}, key=lambda name: (name not in taught, name))),
        taught=taught,
        cells={
            cell: SideEffect(*cell, float(values.mean()), len(values), p_values[cell], cell in beyond)
            for cell, values in means.items()
        },
    )


def _p_value(values: NDArray[np.float64], seed: int) -> float:
    """Of a mean of 0, where each fact could as well have moved the other way; all 2^n signs for few facts."""
    if len(values) < 2 or not values.any():  # one fact cannot show anything, nor can what did not move
        return 1.0
    result = permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _NUMBERS_AT_ONCE // len(values)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _beyond_chance(p_values: dict[tuple[str, str], float]) -> set[tuple[str, str]]:
    if not p_values:
        return set()
    adjusted = false_discovery_control(list(p_values.values()))
    return {cell for cell, p in zip(p_values, adjusted, strict=True) if p < FALSE_DISCOVERY_RATE}


def most_facts(effects: SideEffects, count: int) -> Sequence[str]:
    """The relations with most facts, at most `count`, in the matrix's order."""
    size: dict[str, int] = defaultdict(int)
    for cell in effects.cells.values():
        size[cell.relation] += cell.num_facts
    shown = set(sorted(effects.relations, key=lambda name: -size[name])[:count])
    return [name for name in effects.relations if name in shown]
