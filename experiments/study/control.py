"""The control of a filter: as many random facts of each relation."""

from collections import Counter

import numpy as np
from lit_semantic_peft.semantics import FactFilter, RandomFilter, ScoredFacts, Selection


class RandomLike(FactFilter):
    """Keeps as many facts of each relation as another filter does, chosen at random (reason `random`).

    So the dropped facts have the size and the mix of relations of what the other filter drops. Cost: the other filter.

    Args:
        filter: The filter to be compared with.
        seed: Another seed, another choice.

    Example:
        >>> from lit_semantic_peft.semantics import MeanVarianceFilter
        >>> distance = np.array([0.1, 0.2, 0.9, 1.0])
        >>> facts = ScoredFacts(tuple("abcd"), ("x", "x", "y", "y"), distance, distance, np.zeros(4, dtype=bool))
        >>> kept = RandomLike(MeanVarianceFilter(keep=3, variance_weight=0.0)).select(facts).kept
        >>> int(kept[:2].sum()), int(kept[2:].sum())
        (2, 1)
    """

    def __init__(self, filter: FactFilter, seed: int = 0) -> None:
        self.filter = filter
        self.seed = seed
        self.needs_strata = filter.needs_strata

    def select(self, facts: ScoredFacts) -> Selection:
        """Keeps a random choice of the same make; see `FactFilter.select`."""
        chosen = self.filter.select(facts).kept
        relation = np.array(facts.relation, dtype=object)
        kept = np.zeros(len(facts), dtype=np.bool_)
        for name, size in Counter(relation[chosen].tolist()).items():
            rows = np.flatnonzero(relation == name)
            share = 1.0 if size == len(rows) else size if size > 1 else 1 / len(rows)
            kept[rows] = RandomFilter(keep=share, seed=self.seed).select(facts.take(rows)).kept
        return Selection(kept, tuple(None if is_kept else "random" for is_kept in kept))
