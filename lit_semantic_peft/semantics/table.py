"""The table that scoring fills and that filters and weightings read: one row per fact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lit_semantic_peft.semantics.features import Feature

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ScoredFacts:
    """How far each fact is from the base model. All columns have one entry per fact, in the same order.

    Attributes:
        fact_id: Stable ids.
        relation: Kind of each fact ("" where unknown).
        distance: The distance that filters and weightings use, float64 `(n,)`; larger is farther.
        distances: Every distance that was measured, by its name, float64 `(n,)` each; `distance` is one of them.
        stratum: How well the base model knows each fact, see `Strata`; empty if not measured.
        measure: Measures a feature of the facts with the given ids; None if no base model is available.
        base_nll: Mean negative log-likelihood of the target under the base model, float64 `(n,)`, nats per token.
        is_known: Whether the base model already generates the target, bool `(n,)`.
        base_answer: The base model's greedy answer, at most as many tokens as the longest accepted answer has.
    """

    fact_id: tuple[str, ...]
    relation: tuple[str, ...]
    distance: FloatArray
    base_nll: FloatArray
    is_known: BoolArray
    base_answer: tuple[str, ...] = ()
    distances: Mapping[str, FloatArray] = field(default_factory=dict)
    stratum: tuple[str, ...] = ()
    measure: "Callable[[Feature, tuple[str, ...]], FloatArray] | None" = None

    def __len__(self) -> int:
        return len(self.fact_id)

    def feature(self, feature: "Feature") -> FloatArray:
        """An array per fact, measured when a filter asks for it.

        Args:
            feature: The feature to measure.

        Returns:
            float64 `(n, ...)`, a row per fact.

        Raises:
            ValueError: If the table has no `measure`.
        """
        if self.measure is None:
            raise ValueError(f"{type(feature).__name__} cannot be measured: this table of facts has no `measure`")
        return self.measure(feature, self.fact_id)

    def take(self, rows: NDArray[np.intp]) -> "ScoredFacts":
        """The same columns for some rows.

        Args:
            rows: Row numbers, int `(k,)`.
        """
        return ScoredFacts(
            fact_id=tuple(self.fact_id[row] for row in rows),
            relation=tuple(self.relation[row] for row in rows),
            distance=self.distance[rows],
            base_nll=self.base_nll[rows],
            is_known=self.is_known[rows],
            base_answer=tuple(self.base_answer[row] for row in rows) if self.base_answer else (),
            distances={name: column[rows] for name, column in self.distances.items()},
            stratum=tuple(self.stratum[row] for row in rows) if self.stratum else (),
            measure=self.measure,
        )

    @staticmethod
    def concatenate(tables: Sequence["ScoredFacts"]) -> "ScoredFacts":
        """The rows of several tables with the same columns, one after the other.

        Args:
            tables: At least one.
        """
        return ScoredFacts(
            fact_id=tuple(one for table in tables for one in table.fact_id),
            relation=tuple(one for table in tables for one in table.relation),
            distance=np.concatenate([table.distance for table in tables]),
            base_nll=np.concatenate([table.base_nll for table in tables]),
            is_known=np.concatenate([table.is_known for table in tables]),
            base_answer=tuple(one for table in tables for one in table.base_answer),
            distances={
                name: np.concatenate([table.distances[name] for table in tables]) for name in tables[0].distances
            },
        )
