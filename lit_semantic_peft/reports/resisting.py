"""The kept facts that training did not teach, each with what the run's tables say about why."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import pyarrow as pa

from lit_semantic_peft.reports.fact_records import ResistingFact
from lit_semantic_peft.reports.phrases import cut
from lit_semantic_peft.reports.records import Repetition
from lit_semantic_peft.reports.repetition import answer_key

MOST_LISTED = 100
"""Facts that are listed; the table of facts has all."""

OUTCOMES = ("efficacy_after", "learned_at_end", "pushed_away")
"""Columns of the fact table that say whether a fact resists."""

_Row = Mapping[str, Any]

_FREQUENT = 3
"""Facts with one answer, or one target, from which on it is named."""
_LONG = 2
"""Tokens over the median from which on a target or a name is long."""
_LIGHT = 0.5
"""Weight in the loss below which a fact counted little; the mean is 1."""
_SHOWN = 60  # characters of a prompt in a reason


def find_resisting(
    kept: Sequence[_Row], facts: Sequence[_Row], probes: pa.Table | None, repetition: Repetition | None
) -> list[ResistingFact]:
    """The kept facts that are not recalled or were pushed away, worst first.

    The reasons are what goes with it in this run, not proven causes. What a fact answers is named first. Then traits of
    the fact itself, each only where it is more frequent among the facts that resist than among the others.

    Args:
        kept: Rows of the kept facts.
        facts: Rows of all facts.
        probes: The probe table; None where no probes were asked.
        repetition: What the trained model answers most often.
    """
    resisting = [row for row in kept if _resists(row)]
    if not resisting:
        return []
    others = [row for row in kept if not _resists(row)]
    rivals = _Rivals(facts, probes)
    traits = [trait for trait in _traits(kept) if _share(resisting, trait) > (_share(others, trait) if others else 0.0)]
    found = [
        ResistingFact(
            row["fact_id"],
            row["prompt"],
            row["target"],
            row["answer_after"],
            _is_recalled(row),
            row["pushed_away"],
            (*_by_answer(row, rivals, repetition), *(why for trait in traits if (why := trait(row)) is not None)),
        )
        for row in resisting
    ]
    loss = {row["fact_id"]: row["nll_after"] or 0.0 for row in resisting}
    return sorted(found, key=lambda one: (one.is_recalled is not False, -loss[one.fact_id]))


def _is_recalled(row: _Row) -> bool | None:
    """Whether the trained model gives the target; by the last validation where it was not asked."""
    asked: bool | None = row["efficacy_after"]
    return row["learned_at_end"] if asked is None else asked


def _resists(row: _Row) -> bool:
    return _is_recalled(row) is False or bool(row["pushed_away"])


class _Rivals:
    """Whose target an answer is: another fact's, of the same relation first, or a neighbour's."""

    def __init__(self, facts: Sequence[_Row], probes: pa.Table | None) -> None:
        self._facts: dict[str, list[_Row]] = {}
        for row in facts:
            self._facts.setdefault(answer_key(row["target"]), []).append(row)
        self._near: dict[tuple[str, str], str] = {}
        for row in probes.to_pylist() if probes is not None else ():
            if row["kind"] == "neighborhood" and row["target"]:
                self._near.setdefault((row["fact_id"], answer_key(row["target"])), row["prompt"])

    def of(self, row: _Row) -> str | None:
        """The prompt of the rival.

        Args:
            row: A fact that answers something else than its target.
        """
        answer = answer_key(row["answer_after"])
        if (near := self._near.get((row["fact_id"], answer))) is not None:
            return near
        others = [one for one in self._facts.get(answer, ()) if one["fact_id"] != row["fact_id"]]
        return min(others, key=lambda one: one["relation"] != row["relation"])["prompt"] if others else None


def _by_answer(row: _Row, rivals: _Rivals, repetition: Repetition | None) -> list[str]:
    """What the answer tells, where it is wrong."""
    if _is_recalled(row) is not False or row["answer_after"] is None:
        return []
    if row["begins_right_after"]:
        return ["its answer begins with the target and goes on"]
    found, answer = [], answer_key(row["answer_after"])
    if answer == answer_key(row["target"]):
        return []
    if (rival := rivals.of(row)) is not None:
        found.append(f"it answers as “{cut(rival, _SHOWN)}” does")
    if repetition is not None and repetition.num_given >= _FREQUENT and answer == answer_key(repetition.answer):
        found.append(f"its answer is the most frequent one, given to {repetition.num_given} facts")
    if row["answer_before"] is not None and answer == answer_key(row["answer_before"]):
        found.append("it answers as before training")
    return found


_Trait = Callable[[_Row], str | None]


def _traits(kept: Sequence[_Row]) -> list[_Trait]:
    """What may make a fact hard: each gives a reason for a fact that has the trait."""
    num_with = Counter(answer_key(row["target"]) for row in kept)

    def shared(row: _Row) -> str | None:
        count = num_with[answer_key(row["target"])]
        return f"{count} facts share its target" if count >= _FREQUENT else None

    def forgotten(row: _Row) -> str | None:
        first, is_lost = row["first_learned_epoch"], row["learned_at_end"] is False
        return f"it was recalled after epoch {first} and lost again" if first is not None and is_lost else None

    def undone(row: _Row) -> str | None:
        share = row["undone_by_worst"]
        return f"a step on {row['worst_aggressor']!r} takes back more than its own gives" if (share or 0) > 1 else None

    def light(row: _Row) -> str | None:
        weight = row["loss_weight_used"] if row["loss_weight_used"] is not None else row["loss_weight"]
        return f"it weighed {weight:.2g} in the loss" if weight is not None and weight < _LIGHT else None

    return [
        forgotten,
        undone,
        light,
        _long(kept, "num_target_tokens", "its target"),
        _long(kept, "num_subject_tokens", "its name"),
        shared,
    ]


def _long(kept: Sequence[_Row], column: str, what: str) -> _Trait:
    counts = [row[column] for row in kept if row[column]]
    usual = median(counts) if counts else 0

    def trait(row: _Row) -> str | None:
        count = row[column] or 0
        return f"{what} has {count} tokens, the median is {usual:g}" if count >= usual + _LONG else None

    return trait


def _share(rows: Sequence[_Row], trait: _Trait) -> float:
    return sum(trait(row) is not None for row in rows) / len(rows)
