"""Tables of facts without a model, for tests of what reads them."""

import numpy as np
from lit_semantic_peft.semantics import ScoredFacts


def table(distance, fact_id=None, relation=None, feature=None, stratum=(), is_known=None):
    """A table; `feature` holds the rows that every feature shall have, in the table's order."""
    distance = np.asarray(distance, dtype=np.float64)
    n = len(distance)
    fact_id = tuple(fact_id) if fact_id is not None else tuple(f"f{row:06d}" for row in range(n))
    row_of = {one: row for row, one in enumerate(fact_id)}

    def measure(_, asked):
        return np.asarray(feature, dtype=np.float64)[[row_of[one] for one in asked]]

    return ScoredFacts(
        fact_id=fact_id,
        relation=tuple(relation) if relation is not None else ("",) * n,
        distance=distance,
        base_nll=np.ones(n),
        is_known=np.zeros(n, dtype=bool) if is_known is None else np.asarray(is_known),
        stratum=tuple(stratum),
        measure=None if feature is None else measure,
    )


def kept_ids(fact_filter, facts):
    return {facts.fact_id[row] for row in np.flatnonzero(fact_filter.select(facts).kept)}


def same_in_any_order(fact_filter, facts, seed=0):
    """Whether ten shuffles of the facts leave the kept set as it is."""
    rng = np.random.default_rng(seed)
    expected = kept_ids(fact_filter, facts)
    return all(kept_ids(fact_filter, facts.take(rng.permutation(len(facts)))) == expected for _ in range(10))
