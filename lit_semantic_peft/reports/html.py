"""`report.html`: one page that needs no network, from what lies in a run folder."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_semantic_peft.files import write_text
from lit_semantic_peft.reports.answers import score_rows, side_effect_view
from lit_semantic_peft.reports.charts import before_after_svg, histogram_legend, histogram_svg, lines_svg
from lit_semantic_peft.reports.plots import write_plots
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.sentences import known_facts_were_dropped, summary_sentences
from lit_semantic_peft.reports.side_effects import measure_side_effects
from lit_semantic_peft.reports.summary import BeforeAfter, Seconds, Summary, percent, reason_phrase, total_seconds
from lit_semantic_peft.reports.tables import EXTRA_DISTANCE_PREFIX, FACT_COLUMNS, Column, InterferenceMatrix
from lit_semantic_peft.reports.views import (
    Conflict,
    Course,
    HeatMap,
    distance_histogram,
    heat_map,
    interference_course,
    worst_conflicts,
)

MAX_TABLE_ROWS = 10_000
"""Facts in the page's table; a larger run shows an even sample and says so."""

MAX_PROBE_ROWS = 400
"""Neighbours in the page; changed answers come first."""

_TEXT_BUDGET = 2_000_000  # characters of fact text in the page: keeps 10,000 facts below 5 MB
_SHORTEST_CUT = 24


def build_report(run_folder: str | Path | RunFolder) -> Path:
    """Writes `report.html` and `plots/*.png` of a run folder, each atomically.

    Args:
        run_folder: The folder; needs `facts.parquet` and `summary.json`, uses `probes.parquet`,
            `interference.safetensors` and `config.yaml` where they are there.

    Returns:
        The path of the report. The same folder gives the same bytes.

    Raises:
        InputError: A file that is needed is missing, or one cannot be read.
    """
    folder = RunFolder(run_folder)
    facts, summary = folder.read_facts(), folder.read_summary()
    probes = folder.read_probes() if folder.probes.is_file() else None
    matrix = folder.read_interference() if folder.interference.is_file() else None
    config = folder.read_config() if folder.config.is_file() else ""
    page = render_report(facts, summary, probes=probes, matrix=matrix, config=config, name=folder.path.resolve().name)
    write_plots(folder)
    write_text(folder.report, page)
    return folder.report


def render_report(
    facts: pa.Table,
    summary: Summary,
    *,
    probes: pa.Table | None = None,
    matrix: InterferenceMatrix | None = None,
    config: str = "",
    name: str = "run",
) -> str:
    """The page as text.

    Args:
        facts: The fact table.
        summary: The run's numbers.
        probes: The probe table.
        matrix: The gradient matrix.
        config: The configuration as text; `summary.config` where it is empty.
        name: Name of the run where the summary has none.
    """
    if not config and summary.config:
        config = json.dumps(summary.config, indent=2, ensure_ascii=False)
    rows = _sampled_rows(len(facts), MAX_TABLE_ROWS)
    row_of = {row: shown for shown, row in enumerate(rows)}
    heat = heat_map(matrix, facts) if matrix is not None and len(matrix.fact_index) else None
    histogram = distance_histogram(facts)
    table = facts if len(rows) == len(facts) else facts.take(rows)
    fact_data = _fact_data(table)
    data = {"facts": fact_data, "heat": _heat_data(heat, facts, row_of) if heat is not None else None}
    environment = Environment(
        loader=PackageLoader("lit_semantic_peft.reports", package_path="."),
        autoescape=True,  # every value of the page is text unless this module says otherwise
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template("report.html.j2").render(
        name=summary.name or name,
        summary=summary,
        sentences=[_unbroken(sentence) for sentence in summary_sentences(summary, facts)],
        known_dropped=known_facts_were_dropped(summary, config),
        tiles=_tiles(summary),
        facts_line=_facts_line(summary),
        scores=score_rows(summary),
        side_effects=side_effect_view(measure_side_effects(facts, probes)),
        histogram=histogram_svg(histogram, summary.distance_name or "distance") if histogram is not None else None,
        histogram_legend=histogram_legend(histogram) if histogram is not None else [],
        without_distance=histogram.num_without_distance if histogram is not None else 0,
        charts=_charts(summary),
        course=_course_view(interference_course(summary.interference)),
        heat=heat,
        conflicts=_conflict_views(worst_conflicts(facts, matrix), facts, row_of),
        probes=_probe_view(probes, facts) if probes is not None else None,
        config=config,
        provenance=_provenance(summary),
        num_table_rows=len(rows),
        num_all_rows=len(facts),
        cut_at=fact_data["cut_at"],
        data=_script_json(data),
    )


def _tiles(summary: Summary) -> list[dict[str, str]]:
    kept, dropped = summary.recall.kept, summary.recall.dropped

    def tile(label: str, share: float | None, note: str) -> dict[str, str]:
        value, note = _unbroken(percent(share)), _unbroken(note)
        return {"label": label, "value": value, "note": note, "empty": "yes" if share is None else ""}

    def before(numbers: BeforeAfter) -> str:
        return f"{percent(numbers.before)} before" if numbers.before is not None else "before: not measured"

    tiles = [
        {
            "label": "Facts kept",
            "value": f"{summary.num_kept}",
            "note": f"of {summary.num_facts}; {summary.num_dropped} dropped",
            "empty": "",
        },
        tile("Facts generated", kept.generated.after, f"of the kept facts; {before(kept.generated)}"),
    ]
    if summary.num_dropped:
        tiles.append(
            tile("Dropped, generated", dropped.generated.after, f"of the dropped facts; {before(dropped.generated)}")
        )
    neighbors = f"of {summary.num_neighbors or 'the'} neighbouring answers"
    tiles.append(tile("Nearby, unchanged", summary.locality, neighbors))
    tiles.append(tile("Pushed away", summary.pushed_away, "of the kept facts ended farther off"))
    rates = [record.conflict_rate for record in summary.interference if record.conflict_rate is not None]
    note = "at the end" if rates else "of facts"
    if len(rates) > 1:  # a single one is from after training
        note += f"; {percent(rates[0])} at the start, {percent(max(rates))} at worst"
    tiles.append(tile("Pairs in conflict", rates[-1] if rates else None, note))
    return tiles


def _facts_line(summary: Summary) -> str:
    parts = [part for part in (summary.peft_type, summary.base_model) if part]
    if summary.trainable_parameters is not None:
        parts.append(f"{summary.trainable_parameters:,} trained parameters".replace(",", "\u202f"))
    if summary.created:
        parts.append(summary.created.replace("T", " ")[:16])
    return " · ".join(parts)


def _charts(summary: Summary) -> dict[str, Any]:
    epochs = [record.epoch + 1 for record in summary.epochs]
    loss = {
        "training loss": [record.loss for record in summary.epochs],
        "NLL after the epoch": [record.val_nll for record in summary.epochs],
    }
    loss = {label: values for label, values in loss.items() if any(value is not None for value in values)}
    kept, dropped = summary.recall.kept, summary.recall.dropped
    recalls = [("kept, generated", kept.generated, "s0"), ("kept, teacher-forced", kept.teacher_forced, "s0")]
    if summary.num_dropped:
        recalls += [
            ("dropped, generated", dropped.generated, "s1"),
            ("dropped, teacher-forced", dropped.teacher_forced, "s1"),
        ]
    return {
        "before_after": before_after_svg(recalls, "Recall before and after training"),
        "recall": lines_svg(
            epochs, {"recall": [record.recall for record in summary.epochs]},
            x_label="epoch", title="Teacher-forced recall of the kept facts by epoch", classes=["s0"], share=True,
        ) if epochs else None,
        "loss": lines_svg(epochs, loss, x_label="epoch", title="Loss by epoch") if epochs else None,
        "loss_legend": list(zip(loss, ("s0", "s1"), strict=False)),
    }  # fmt: skip


def _course_view(course: Course | None) -> dict[str, Any] | None:
    """The chart of interference over training, and its start, worst and end in numbers."""
    if course is None:
        return None
    colors = ("s1", "s3", "s2")
    moments = {"start": 0, "worst": course.worst, "end": len(course.x) - 1}
    if len(course.x) < 2:
        moments = {"measured": 0}
    elif course.worst in (None, 0, len(course.x) - 1):
        del moments["worst"]
    places = {name: at for name, at in moments.items() if at is not None}
    return {
        "chart": lines_svg(
            course.x,
            course.shares,
            x_label=course.x_label,
            title="Interference over training",
            classes=colors,
            share=True,
        ),
        "legend": list(zip(course.shares, colors, strict=False)),
        "columns": [f"{name} ({course.x[at]})" for name, at in places.items()],
        "x_label": course.x_label,
        "rows": [
            (label, [_unbroken(percent(values[at])) for at in places.values()])
            for label, values in course.shares.items()
        ],
        "num_measured": len(course.x),
    }


def _conflict_views(conflicts: list[Conflict], facts: pa.Table, row_of: dict[int, int]) -> list[dict[str, Any]]:
    most = max((conflict.undone or 0.0 for conflict in conflicts), default=0.0)

    def fact(row: int) -> dict[str, Any]:
        value = facts.slice(row, 1).to_pylist()[0]
        return {
            "prompt": _cut(value["prompt"], 240),
            "target": _cut(value["target"], 120),
            "relation": value["relation"] or "",
            "row": row_of.get(row),
        }

    return [
        {
            "victim": fact(conflict.victim),
            "aggressor": fact(conflict.aggressor),
            "cosine": _signed(conflict.cosine),
            "undone": _undone(conflict.undone),
            "bar": round(100 * (conflict.undone or 0.0) / most) if most else 0,
            "net_transfer": _signed(conflict.net_transfer),
        }
        for conflict in conflicts
    ]


def _probe_view(probes: pa.Table, facts: pa.Table) -> dict[str, Any]:
    rows = [row for row in probes.to_pylist() if row["kind"] == "neighborhood"]
    changed = [row for row in rows if row["unchanged"] is False]
    ordered = changed + [row for row in rows if row["unchanged"] is not False]
    text_of = dict(zip(facts.column("fact_id").to_pylist(), facts.column("prompt").to_pylist(), strict=True))
    verdict = {True: "unchanged", False: "changed", None: "not measured"}
    return {
        "num_all": len(rows),
        "num_changed": len(changed),
        "lost": sum(1 for row in rows if row["correct_before"] and row["correct_after"] is False),
        "gained": sum(1 for row in rows if row["correct_after"] and row["correct_before"] is False),
        "rows": [
            {
                "prompt": _cut(row["prompt"], 240),
                "target": _cut(row["target"] or "", 80),
                "before": _cut(row["answer_before"], 80),
                "after": _cut(row["answer_after"], 80),
                "verdict": verdict[row["unchanged"]],
                "beside": _cut(text_of.get(row["fact_id"]) or row["fact_id"], 120),
            }
            for row in ordered[:MAX_PROBE_ROWS]
        ],
    }


def _provenance(summary: Summary) -> list[tuple[str, str]]:
    seconds = summary.seconds or Seconds()
    total = total_seconds(seconds)
    parts = ", ".join(f"{part} {value:.0f}" for part, value in seconds.to_json().items() if value is not None)
    rows = [
        ("Command", summary.command),
        ("Ended", summary.created),
        ("Base model", summary.base_model),
        ("Note on the base model", summary.base_model_note),
        ("Adapter", summary.peft_type),
        ("Distance", summary.distance_name),
        ("Seconds", f"{total:.0f} ({parts})" if total is not None else None),
        ("Peak memory", f"{summary.peak_memory_gb:.2f} GB" if summary.peak_memory_gb is not None else None),
        *sorted(summary.versions.items()),
    ]
    return [(label, value) for label, value in rows if value]


def _heat_data(heat: HeatMap, facts: pa.Table, shown_row: dict[int, int]) -> dict[str, Any]:
    columns = facts.select(["fact_index", "prompt", "target"]).to_pydict()
    row_of = {index: row for row, index in enumerate(columns["fact_index"])}
    rows = [row_of.get(int(index)) for index in heat.fact_index]
    names = [
        f"fact {index}" if row is None else _cut(f"{columns['prompt'][row]} {columns['target'][row]}", 160)
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


def _fact_data(facts: pa.Table) -> dict[str, Any]:
    """The fact table by columns: numbers to four digits, repeated texts as codes, columns without values left out."""
    known = {column.name: column for column in FACT_COLUMNS}
    columns = [
        known.get(name, Column(name, facts.schema.field(name).type, ""))
        for name in facts.column_names
        if name in known or name.startswith(EXTRA_DISTANCE_PREFIX)
    ]
    texts = {c.name: facts.column(c.name).to_pylist() for c in columns if pa.types.is_string(c.type)}
    fact_ids = texts["fact_id"]
    row_of = {fact_id: row for row, fact_id in enumerate(fact_ids)}
    # Facts named here but not shown (a sample is) have no row to point to.
    aggressors = [None if fact_id is None else row_of.get(fact_id) for fact_id in texts.pop("worst_aggressor")]
    texts["drop_reason"] = [None if reason is None else reason_phrase(reason) for reason in texts["drop_reason"]]
    cut_at = _cut_length(texts)
    values: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for column in columns:
        if column.name == "worst_aggressor":
            kinds[column.name], values[column.name] = "fact", aggressors
        elif column.name in texts:
            cut = [None if text is None else _cut(text, cut_at) for text in texts[column.name]]
            distinct = sorted({text for text in cut if text is not None})
            if len(distinct) <= max(16, len(cut) // 8):
                code = {text: number for number, text in enumerate(distinct)}
                kinds[column.name] = "code"
                values[column.name] = [distinct, [None if text is None else code[text] for text in cut]]
                continue
            kinds[column.name], values[column.name] = "text", cut
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
        "notes": {c.name: c.description.replace("`", "") for c in columns if c.description and c.name in measured},
        "cut_at": cut_at if any(len(t) > cut_at for ts in texts.values() for t in ts if t is not None) else None,
    }


def _cut_length(texts: dict[str, list[str | None]]) -> int:
    """The longest cut at which all texts together stay within the page's budget."""
    lengths = np.array([len(text) for column in texts.values() for text in column if text is not None])
    cut = 400
    while cut > _SHORTEST_CUT and np.minimum(lengths, cut).sum() > _TEXT_BUDGET:
        cut = max(_SHORTEST_CUT, int(cut * 0.85))
    return cut


def _sampled_rows(count: int, limit: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    return [int(row) for row in np.linspace(0, count - 1, limit)]


def _script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element or start a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _rounded(value: float | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    number = float(f"{value:.4g}")
    return int(number) if number.is_integer() else number


def _signed(value: float | None) -> str:
    if value is None:
        return "not measured"
    return (f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2f}").replace("-", "−")


def _unbroken(text: str) -> str:
    """Keeps a number and its per cent sign on one line."""
    return text.replace(" %", "\u00a0%")


def _undone(share: float | None) -> str | None:
    """The share of a step that is taken back; in times where per cent would be hard to read."""
    if share is None:
        return None
    return f"{share:.1f} ×" if share >= 2 else _unbroken(percent(share))


def _cut(text: str | None, length: int) -> str:
    if text is None:
        return "not measured"
    return text if len(text) <= length else text[: length - 1] + "…"
