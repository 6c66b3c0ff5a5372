"""How distances agree, and which of them predicted what a finished run has learned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.statistics import Discrimination, discrimination, rank_correlation

OUTCOMES = ("efficacy_teacher_forced", "efficacy")
"""When a fact counts as learned: recalled under its true prefix, or generated exactly."""


@dataclass(frozen=True)
class DistanceComparison:
    """How the distances agree with each other and with what a run learned.

    Attributes:
        names: The distances.
        rank_correlation: Spearman's, over all facts, float64 `(k, k)`; NaN where a distance is constant.
        predicts: By outcome and distance, how well the distance separates learned facts; None without a run.
    """

    names: tuple[str, ...]
    rank_correlation: NDArray[np.float64]
    predicts: Mapping[str, Mapping[str, Discrimination]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; null for what could not be measured."""
        correlation = [[None if value != value else value for value in row] for row in self.rank_correlation.tolist()]
        predicts = None
        if self.predicts is not None:
            predicts = {
                outcome: {name: one.to_json() for name, one in of_distance.items()}
                for outcome, of_distance in self.predicts.items()
            }
        return {"distances": list(self.names), "rank_correlation": correlation, "predicts_learned": predicts}


def read_learned(run: RunFolder) -> dict[str, dict[str, bool]]:
    """What a finished run learned of what it was to learn.

    Args:
        run: The run folder.

    Returns:
        For each outcome whether the fact was learned, by `fact_id`: facts that were trained and that the base model
        did not answer right.

    Raises:
        InputError: If there is no run, it was not evaluated, or no outcome has two facts on either side.
    """
    rows = run.facts.to_pylist()
    learned: dict[str, dict[str, bool]] = {}
    for outcome in OUTCOMES:
        before, after = f"{outcome}_before", f"{outcome}_after"
        of_facts = {
            row["fact_id"]: row[after]
            for row in rows
            if row["kept"] and row[before] is False and row[after] is not None
        }
        if min(sum(of_facts.values()), len(of_facts) - sum(of_facts.values())) >= 2:
            learned[outcome] = of_facts
    if not any(row["efficacy_teacher_forced_after"] is not None for row in rows):
        raise InputError(
            f"`run` {run.path}: its facts have not been asked after training; "
            f"`lit-semantic-peft test --config {run.paths.config} --ckpt_path last` does."
        )
    if not learned:
        raise InputError(
            f"`run` {run.path}: to measure what predicts learning, at least two of the trained facts must have "
            "been learned and two not. Take a run with fewer epochs, or with more or harder facts."
        )
    return learned


def compare_distances(
    distances: Mapping[str, NDArray[np.float64]],
    fact_ids: tuple[str, ...],
    learned: Mapping[str, Mapping[str, bool]] | None = None,
) -> DistanceComparison:
    """Compares distances with each other and with what was learned.

    Args:
        distances: Of every fact, float64 `(n,)`, by name.
        fact_ids: The facts.
        learned: From `read_learned`; None without a run.

    Raises:
        InputError: If the run was trained on facts that are not among these.
    """
    predicts = None
    if learned is not None:
        row_of = {fact_id: row for row, fact_id in enumerate(fact_ids)}
        predicts = {}
        for outcome, of_facts in learned.items():
            if missing := [fact_id for fact_id in of_facts if fact_id not in row_of]:
                raise InputError(
                    f"`run` was trained on {len(missing)} facts that `data.facts` does not hold, such as "
                    f"{missing[0]!r}. Name the run's own facts, as its configuration does."
                )
            rows = np.array([row_of[fact_id] for fact_id in of_facts])
            is_learned = np.array(list(of_facts.values()), dtype=np.bool_)
            found = {name: discrimination(values[rows], is_learned) for name, values in distances.items()}
            predicts[outcome] = {name: one for name, one in found.items() if one is not None}
    return DistanceComparison(tuple(distances), rank_correlation(distances), predicts)
