"""Recall by wording: where one way of asking fails for most facts of a relation, and what is answered instead."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from lit_semantic_peft.reports.fact_records import WeakWording
from lit_semantic_peft.reports.repetition import answer_key

MOST_WORDINGS = 20
"""Weak wordings that are listed."""

_KINDS = ("paraphrase", "question", "reversed")
_FEWEST = 3
"""Facts from which on a wording says more than its facts."""
_WEAK = 0.5
"""Share of the facts below which a wording is weak."""
_GAP = "…"

_Row = Mapping[str, Any]
_Wording = tuple[str, str, str]


def find_weak_wordings(kept: Sequence[_Row], probes: pa.Table | None) -> tuple[int | None, list[WeakWording]]:
    """The wordings in which fewer than half of the facts that were asked so are recalled, the worst first.

    A wording is a question of a kind with … for the name, within a relation: of paraphrases and questions for the
    subject, of reversed questions for the target. Only those that at least three facts share.

    Args:
        kept: Rows of the kept facts.
        probes: The probe table; None where no probes were asked.

    Returns:
        How many wordings there are, weak or not, None where there are none; and the weak ones.
    """
    fact_of = {row["fact_id"]: row for row in kept}
    asked: dict[_Wording, dict[str, _Row]] = defaultdict(dict)
    for row in probes.to_pylist() if probes is not None else []:
        fact = fact_of.get(row["fact_id"])
        if fact is not None and row["kind"] in _KINDS and row["correct_after"] is not None:
            wording = _without_name(row["prompt"], fact["target" if row["kind"] == "reversed" else "subject"])
            if wording is not None:
                asked[row["kind"], fact["relation"] or "", wording].setdefault(row["fact_id"], row)
    shared = {wording: list(of_fact.values()) for wording, of_fact in asked.items() if len(of_fact) >= _FEWEST}
    weak = [one for wording, rows in shared.items() if (one := _measured(wording, rows)).share_recalled < _WEAK]
    return len(shared) or None, sorted(weak, key=lambda one: (one.share_recalled, -one.num_facts))


def _without_name(prompt: str, name: str | None) -> str | None:
    """The prompt with … for the name and its article; None where the name is not in it."""
    if not name:
        return None
    bare = re.sub(r"^the ", "", name, flags=re.IGNORECASE)
    wording, found = re.subn(rf"(?<!\w)(?:the )?{re.escape(bare)}(?!\w)", _GAP, prompt, flags=re.IGNORECASE)
    return wording if found else None


def _measured(wording: _Wording, rows: Sequence[_Row]) -> WeakWording:
    wrong = [row for row in rows if not row["correct_after"]]
    answers = Counter(answer_key(row["answer_after"]) for row in wrong if row["answer_after"])
    key, num_given = min(answers.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    said = (row["answer_after"] for row in wrong if row["answer_after"] and answer_key(row["answer_after"]) == key)
    return WeakWording(
        *wording,
        num_facts=len(rows),
        num_recalled=len(rows) - len(wrong),
        num_as_before=sum(row["unchanged"] is True for row in wrong),
        answer=next(said, None),
        num_given=num_given,
    )
