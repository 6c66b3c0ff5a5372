"""The contents of the page of `score`, as text and numbers: what facts are like before any of them is taught."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lit_semantic_peft.evaluation.scores import label_of
from lit_semantic_peft.reports.attempts import Attempts
from lit_semantic_peft.reports.phrases import capitalized, cut, percent, reason_phrase, unbroken
from lit_semantic_peft.reports.repetition import answer_key
from lit_semantic_peft.reports.run_folder import RunContents, RunPaths
from lit_semantic_peft.reports.score_records import Findings, ScoreContents
from lit_semantic_peft.reports.tables import EXTRA_DISTANCE_PREFIX

MOST_ROWS = 200
"""Doubtful facts, contradictions and groups in the page; their file has all."""

_EXAMPLES = 3  # facts of a group of near-duplicates
_EXTREMES = 5  # nearest and farthest facts
_RELATIONS = 5  # relations that are named in a sentence
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Of the distances, in the page and in the terminal."""


def score_parts(
    run: RunContents, score: ScoreContents, row_of: Mapping[int, int], attempts: Attempts
) -> dict[str, Any]:
    """The values of the template that only this page has.

    Args:
        run: The fact table and the summary.
        score: What `score` found.
        row_of: Row in the page's table by row of the fact table.
        attempts: Keeps the reasons of what cannot be made.
    """
    facts, found, make = run.facts, score.findings, attempts.make
    link = _Link(facts, row_of)
    return {
        "tiles": make("numbers at the top", lambda: score_tiles(run, score), []),
        "warnings": make("what to look at", lambda: list(map(unbroken, warnings(found, len(score.doubtful)))), []),
        "sentences": make("what was found", lambda: list(map(unbroken, sentences(run, found))), []),
        "filters": [_filter_row(one) for one in found.filters],
        "contradictions": make("contradictions", lambda: _contradictions(found, link), []),
        "num_contradictions": len(found.contradictions),
        "duplicates": make("near-duplicates", lambda: _duplicates(found, link), []),
        "num_duplicates": len(found.near_duplicates),
        "doubtful": make("doubtful facts", lambda: _doubtful(score, link), []),
        "num_doubtful": len(score.doubtful),
        "extremes": make("nearest and farthest facts", lambda: _extremes(facts, link), []),
        "distances": make("distances", lambda: _distances(facts, score), None),
        "predictions": make("what predicts learning", lambda: _predictions(score), None),
        "conflict_steps": found.conflict_steps,
        "doubtful_file": RunPaths.doubtful.name,
        "findings_file": RunPaths.findings.name,
    }


def score_tiles(run: RunContents, score: ScoreContents) -> list[dict[str, str]]:
    """The numbers at the top of the page.

    Args:
        run: The fact table and the summary.
        score: What `score` found.
    """
    found, summary = score.findings, run.summary
    others = len(run.facts) - summary.num_facts
    repeated = sum(len(one.fact_ids) - 1 for one in found.near_duplicates)
    rows = [
        ("Facts", summary.num_facts, f"and {others} that are not to be taught" if others else "to be taught"),
        ("Known already", found.num_known, f"{percent(found.num_known / (summary.num_facts or 1))} of them"),
        ("Kept by the filters", summary.num_kept, f"{summary.num_dropped} would be dropped"),
        ("Near-duplicates", repeated, f"repeat another fact, in {_count(len(found.near_duplicates), 'group')}"),
        ("Contradictions", len(found.contradictions), "the same prompt, another target"),
        ("Against the model", len(score.doubtful), "where it is sure of another answer"),
    ]
    return [{"label": label, "value": str(value), "note": unbroken(note)} for label, value, note in rows]


def warnings(found: Findings, num_doubtful: int) -> list[str]:
    """What to look at before a training, each with what to do.

    Args:
        found: What was found about the facts as a set.
        num_doubtful: Facts that contradict what the base model knows with confidence.
    """
    said, names = [], {one.name for one in found.filters}
    if found.filters and found.filters[-1].num_given == found.filters[-1].num_dropped:
        said.append(none_left(found.filters[-1].name, found.filters[-1].dropped))
    if count := len(found.contradictions):
        said.append(
            f"{_count(count, 'fact')} {'has' if count == 1 else 'have'} the prompt of another fact and a different "
            "target. `fit` refuses such a file: mend it, or set `data.contradictions: keep`."
        )
    if num_doubtful:
        said.append(
            f"{_count(num_doubtful, 'fact')} {'contradicts' if num_doubtful == 1 else 'contradict'} an answer of which "
            "the base model is sure. Look there first for errors in the file."
        )
    repeated = sum(len(one.fact_ids) - 1 for one in found.near_duplicates)
    if repeated and "RedundancyFilter" not in names:
        said.append(
            f"{_count(repeated, 'fact')} nearly {'repeats' if repeated == 1 else 'repeat'} another one. "
            "`RedundancyFilter` in `data.selection.filters` drops facts whose prompt and target mean the same."
        )
    if found.num_known and "KnownFilter" not in names:
        said.append(
            f"The base model gives {_count(found.num_known, 'fact')} already. `KnownFilter` in "
            "`data.selection.filters` drops them."
        )
    return said


def none_left(name: str, dropped: Mapping[str, int]) -> str:
    """What to do where the filters leave no fact.

    Args:
        name: Class name of the filter that drops the last ones.
        dropped: What it drops, by reason.
    """
    count, reasons = sum(dropped.values()), ", ".join(map(reason_phrase, dropped))
    if name == "KnownFilter":
        advice = "The base model gives these facts already: take other facts, or leave the filter out."
    else:
        advice = "Widen its bounds, raise its `keep`, or leave it out."
    return (
        f"The filters leave no fact, and `fit` refuses to train on none. `{name}` drops the last {count} ({reasons}). "
        f"{advice}"
    )


def sentences(run: RunContents, found: Findings) -> list[str]:
    """What the facts are like, in plain sentences.

    Args:
        run: The fact table and the summary.
        found: What was found about the facts as a set.
    """
    said = []
    answers = Counter(answer_key(one) for one in run.facts.column("answer_before").to_pylist() if one)
    if answers:
        answer, count = min(answers.items(), key=lambda item: (-item[1], item[0]))
        if count > 1:
            said.append(
                f"The base model's most frequent answer is “{cut(answer, 60)}”, to {count} of {len(run.facts)} facts."
            )
    distance = np.array(run.facts.column("distance").drop_null().to_pylist())
    if len(distance):
        low, middle, high = (f"{value:.3g}" for value in np.quantile(distance, (0.25, 0.5, 0.75)))
        name = run.summary.distance_name or "distance"
        said.append(f"{name}: the middle fact is at {middle}, half of them lie between {low} and {high}.")
    if missing := found.without_templates:
        shown = [f"{name or 'no relation'} ({count})" for name, count in missing.items()]
        more = [f"{len(shown) - _RELATIONS} more"] if len(shown) > _RELATIONS else []
        said.append(
            "Relations for which there are no templates of other wordings, so that their facts have only the forms in "
            f"the file: {', '.join([*shown[:_RELATIONS], *more])}."
        )
    return said


class _Link:
    """A fact as a template shows it: its text, and the row of the page's table that holds its card."""

    def __init__(self, facts: pa.Table, row_of: Mapping[int, int]) -> None:
        columns = facts.select(["fact_id", "prompt", "target"]).to_pydict()
        self._text = list(zip(columns["prompt"], columns["target"], strict=True))
        self._row = {fact_id: row for row, fact_id in enumerate(columns["fact_id"])}
        self._row_of = row_of

    def to(self, fact_id: str) -> dict[str, Any]:
        row = self._row[fact_id]
        prompt, target = self._text[row]
        return {"prompt": cut(prompt, 240), "target": cut(target, 120), "row": self._row_of.get(row)}


def _filter_row(one: Any) -> dict[str, Any]:
    reasons = ", ".join(
        reason_phrase(reason) if len(one.dropped) == 1 else f"{count} {reason_phrase(reason)}"
        for reason, count in one.dropped.items()
    )
    return {
        "name": one.name,
        "given": one.num_given,
        "dropped": one.num_dropped,
        "left": one.num_given - one.num_dropped,
        "reasons": reasons or "–",
    }


def _contradictions(found: Findings, link: _Link) -> list[dict[str, Any]]:
    return [
        {
            "prompt": cut(one.prompt, 240),
            "sides": [
                {"target": cut(target, 120), "where": where, "row": link.to(fact_id)["row"]}
                for target, where, fact_id in zip(one.targets, one.locations, one.fact_ids, strict=True)
            ],
        }
        for one in found.contradictions[:MOST_ROWS]
    ]


def _duplicates(found: Findings, link: _Link) -> list[dict[str, Any]]:
    return [
        {
            "template": cut(one.template, 240),
            "count": len(one.fact_ids),
            "facts": [link.to(fact_id) for fact_id in one.fact_ids[:_EXAMPLES]],
            "more": max(0, len(one.fact_ids) - _EXAMPLES),
        }
        for one in found.near_duplicates[:MOST_ROWS]
    ]


def _doubtful(score: ScoreContents, link: _Link) -> list[dict[str, Any]]:
    return [
        {
            **link.to(one.fact_id),
            "answer": cut(one.answer, 80),
            "probability": f"{one.probability:.2f}",
            "target_probability": f"{one.target_probability:.2g}",
            "where": one.location or one.fact_id,
        }
        for one in score.doubtful[:MOST_ROWS]
    ]


def _extremes(facts: pa.Table, link: _Link) -> list[dict[str, Any]]:
    """The nearest and the farthest facts that are to be taught, none of them twice."""
    rows = [row for row in facts.to_pylist() if row["distance"] is not None and row["split"] in (None, "inject")]
    rows.sort(key=lambda row: row["distance"])
    near, far = rows[:_EXTREMES], rows[_EXTREMES:][-_EXTREMES:]
    return [
        {
            **link.to(row["fact_id"]),
            "answer": cut(row["answer_before"] or "", 80),
            "distance": f"{row['distance']:.3f}",
            "status": "kept" if row["kept"] else reason_phrase(row["drop_reason"] or "dropped"),
            "is_kept": bool(row["kept"]),
            "begins": at in (0, len(near)),
            "which": "nearest" if at < len(near) else "farthest",
        }
        for at, row in enumerate([*near, *far])
    ]


def _distances(facts: pa.Table, score: ScoreContents) -> dict[str, Any]:
    """Quantiles of each distance, and how the distances agree where there are several."""
    names = score.distances.distances
    rows = []
    for name in names:
        values = np.array(facts.column(EXTRA_DISTANCE_PREFIX + name).drop_null().to_pylist())
        rows.append((name, [f"{value:.3f}" for value in np.quantile(values, QUANTILES)] if len(values) else []))
    agreement = [
        (names[i], names[j], "–" if (value := row[j]) is None else f"{value:.2f}".replace("-", "−"))
        for i, row in enumerate(score.distances.rank_correlation)
        for j in range(i + 1, len(names))
    ]
    heads = ["nearest", *(percent(one) for one in QUANTILES[1:-1]), "farthest"]
    return {"heads": heads, "rows": rows, "agreement": agreement}


def _predictions(score: ScoreContents) -> dict[str, Any] | None:
    """How well each distance separates what a finished run learned, by outcome."""
    found = score.distances.predicts_learned
    if not found:
        return None
    names = next(iter(found.values()))
    counts = [
        f"{label_of(outcome)}: {one.num_learned} of {one.num_learned + one.num_not_learned} facts"
        for outcome, of_distance in found.items()
        for one in list(of_distance.values())[:1]
    ]
    return {
        "heads": [capitalized(label_of(outcome)) for outcome in found],
        "rows": [
            (name, [f"{one[name].auroc:.2f} ({one[name].low:.2f} to {one[name].high:.2f})" for one in found.values()])
            for name in names
        ],
        "counts": "; ".join(counts),
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
