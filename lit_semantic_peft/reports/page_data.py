"""The numbers that the page's script works on: the fact table by columns, and the heat map."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.reports.charts.kinds import HeatMap
from lit_semantic_peft.reports.phrases import capitalized, cut, reason_phrase
from lit_semantic_peft.reports.tables import EXTRA_DISTANCE_PREFIX, FACT_COLUMNS, Column

_TEXT_BUDGET = 2_000_000  # characters of fact text in the page: keeps 10,000 facts below 5 MB
_SHORTEST_CUT = 24


def sampled_rows(count: int, limit: int) -> list[int]:
    """Row numbers of a table, at most `limit` of them, evenly spread."""
    if count <= limit:
        return list(range(count))
    return [int(row) for row in np.linspace(0, count - 1, limit)]


def fact_data(facts: pa.Table) -> dict[str, Any]:
    """The fact table by columns: numbers to four digits, repeated texts as codes, columns without values left out.

    Args:
        facts: The rows to show.
    """
    known = {column.name: column for column in FACT_COLUMNS}
    columns = [
        known.get(name, Column(name, facts.schema.field(name).type, ""))
        for name in facts.column_names
        if name in known or name.startswith(EXTRA_DISTANCE_PREFIX)
    ]
    texts = {c.name: facts.column(c.name).to_pylist() for c in columns if pa.types.is_string(c.type)}
    lists = {c.name: facts.column(c.name).to_pylist() for c in columns if pa.types.is_list(c.type)}
    texts |= {name: [" · ".join(one) if one else None for one in column] for name, column in lists.items()}
    fact_ids = texts["fact_id"]
    row_of = {fact_id: row for row, fact_id in enumerate(fact_ids)}
    # Facts that are named here but not in the shown sample have no row to point to.
    aggressors = [None if fact_id is None else row_of.get(fact_id) for fact_id in texts.pop("worst_aggressor")]
    texts["drop_reason"] = [None if reason is None else reason_phrase(reason) for reason in texts["drop_reason"]]
    cut_at = _cut_length(texts)
    values: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for column in columns:
        if column.name == "worst_aggressor":
            kinds[column.name], values[column.name] = "fact", aggressors
        elif column.name in texts:
            shown = [None if text is None else cut(text, cut_at) for text in texts[column.name]]
            distinct = sorted({text for text in shown if text is not None})
            if len(distinct) <= max(16, len(shown) // 8):
                code = {text: number for number, text in enumerate(distinct)}
                kinds[column.name] = "code"
                values[column.name] = [distinct, [None if text is None else code[text] for text in shown]]
                continue
            kinds[column.name], values[column.name] = "text", shown
        elif pa.types.is_boolean(column.type):
            kinds[column.name] = "flag"
            values[column.name] = [None if v is None else int(v) for v in facts.column(column.name).to_pylist()]
        else:
            kinds[column.name] = "number"
            values[column.name] = [_rounded(v) for v in facts.column(column.name).to_pylist()]
    measured = [
        c.name
        for c in columns
        if (bool(values[c.name][0]) if kinds[c.name] == "code" else any(v is not None for v in values[c.name]))
    ]
    return {
        "n": len(facts),
        "kinds": {name: kinds[name] for name in measured},
        "values": {name: values[name] for name in measured},
        "labels": {score.after: capitalized(score.label) for score in SCORES},
        "notes": {c.name: c.description.replace("`", "") for c in columns if c.description and c.name in measured},
        "cut_at": cut_at if any(len(t) > cut_at for ts in texts.values() for t in ts if t is not None) else None,
    }


_PROBE_BUDGET = 1_500_000  # characters of probes in the page
_KINDS = {
    "paraphrase": "in other words",
    "question": "as a question",
    "reversed": "the other way round",
    "portability": "conclusion",
    "yes_no": "yes or no",
    "neighborhood": "neighbour",
}
"""How a fact's card names the kinds of probes that it shows."""


def probe_data(probes: pa.Table, fact_ids: Sequence[str]) -> dict[str, Any]:
    """What was asked about each fact, for its card.

    Args:
        probes: The probe table.
        fact_ids: Of the facts in the page's table, in its order.

    Returns:
        `of`: for each row of the page's table with probes, a list of probes, each its kind in words, prompt, expected
        answer, answers before and after, and three flags (right before, right after, unchanged; null where not
        measured), of which a neighbour has the last. `is_cut`: whether probes were left out for the page's size.
    """
    row_of = {fact_id: row for row, fact_id in enumerate(fact_ids)}
    found: dict[int, list[list[Any]]] = {}
    room = _PROBE_BUDGET
    for one in probes.to_pylist():
        row = row_of.get(one["fact_id"])
        if row is None or one["kind"] not in _KINDS:
            continue
        texts: list[str | None] = [cut(one["prompt"], 240)]
        texts += [
            None if one[name] is None else cut(one[name], 80) for name in ("target", "answer_before", "answer_after")
        ]
        room -= sum(len(text) for text in texts if text is not None)
        if room < 0:
            return {"of": found, "is_cut": True}
        right = [one["correct_before"], one["correct_after"]] if one["kind"] != "neighborhood" else [None, None]
        found.setdefault(row, []).append([_KINDS[one["kind"]], *texts, *right, one["unchanged"]])
    return {"of": found, "is_cut": False}


def heat_data(heat: HeatMap, facts: pa.Table, shown_row: Mapping[int, int]) -> dict[str, Any]:
    """The heat map: cosines in hundredths, names, and the rows of the page's table.

    Args:
        heat: The heat map.
        facts: The whole fact table.
        shown_row: Row in the page's table by row of the fact table.
    """
    columns = facts.select(["fact_index", "prompt", "target"]).to_pydict()
    row_of = {index: row for row, index in enumerate(columns["fact_index"])}
    rows = [row_of.get(int(index)) for index in heat.fact_index]
    names = [
        f"fact {index}" if row is None else cut(f"{columns['prompt'][row]} {columns['target'][row]}", 160)
        for index, row in zip(heat.fact_index, rows, strict=True)
    ]
    return {
        # Hundredths are finer than a colour can show, and a third of the bytes.
        "cosine": [
            [None if math.isnan(value) else round(100 * value) for value in row] for row in heat.cosine.tolist()
        ],
        "names": names,
        "rows": [None if row is None else shown_row.get(row) for row in rows],
        "blocks": heat.blocks,
        "limit": heat.limit,
    }


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element or start a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _cut_length(texts: dict[str, list[str | None]]) -> int:
    """The longest cut at which all texts together stay within the page's budget."""
    lengths = np.array([len(text) for column in texts.values() for text in column if text is not None])
    length = 400
    while length > _SHORTEST_CUT and np.minimum(lengths, length).sum() > _TEXT_BUDGET:
        length = max(_SHORTEST_CUT, int(length * 0.85))
    return length


def _rounded(value: float | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    number = float(f"{value:.4g}")
    return int(number) if number.is_integer() else number
