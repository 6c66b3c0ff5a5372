"""What an audit leaves behind: `inspection.json`, a page that needs no network, a picture, a part of a model card."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from lit_semantic_peft.audit.inspection import Inspection
from lit_semantic_peft.audit.weights import LayerUpdate, WeightFindings
from lit_semantic_peft.audit.wording import caution, findings, number, signal_rows, verdict_text, warning_sentences
from lit_semantic_peft.files import mark, refuse_foreign, write_json, write_text
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.reports.charts.kinds import Color, LineChart, Series
from lit_semantic_peft.reports.charts.png import PLOT, draw_figure, save_png
from lit_semantic_peft.reports.charts.svg import draw_svg
from lit_semantic_peft.reports.environment import environment
from lit_semantic_peft.reports.phrases import percent, signed, unbroken

JSON_FILE, PAGE_FILE, PICTURE = "inspection.json", "inspection.html", "weights"

CARD_BEGIN, CARD_END = "<!-- audit -->", "<!-- end of audit -->"

_COLORS: tuple[Color, ...] = ("blue", "orange", "green", "purple", "sand", "grey")
_MOST_ROWS = 200
_MOST_TOKENS = 24


def write_inspection(inspection: Inspection, folder: str | Path) -> Path:
    """Writes what an audit found, each file atomically.

    Args:
        inspection: The audit.
        folder: Where to; an earlier audit in it is replaced.

    Returns:
        The path of the page.

    Raises:
        InputError: If a file there is something else, or cannot be written.
    """
    folder = Path(folder)
    for name in (JSON_FILE, PAGE_FILE):
        refuse_foreign(folder / name, name)
    picture = RunFolder(folder).paths.plot(PICTURE)
    refuse_foreign(picture, PLOT)
    charts = [chart for chart in weight_charts(inspection.weights) if chart.is_measured]
    if charts:
        save_png(draw_figure(charts), picture)
    write_text(folder / PAGE_FILE, render_page(inspection), PAGE_FILE)
    write_json(folder / JSON_FILE, inspection.to_json(), JSON_FILE)
    return folder / PAGE_FILE


def render_page(inspection: Inspection) -> str:
    """The page as text.

    Args:
        inspection: The audit.
    """
    charts = weight_charts(inspection.weights)
    return (
        environment("lit_semantic_peft.audit")
        .get_template("inspection.html.j2")
        .render(
            mark=mark(PAGE_FILE),
            name=inspection.name,
            about_line=" · ".join(
                filter(
                    None,
                    (inspection.weights.peft_type, inspection.base_model, f"SHA-256 {inspection.sha256[:16]}…"),
                )
            ),
            verdict=verdict_text(inspection),
            tiles=_tiles(inspection),
            signals=signal_rows(inspection.signals),
            warnings=list(map(unbroken, warning_sentences(inspection))),
            caution=caution(inspection),
            # Single facts have tables of their own.
            sentences=[unbroken(sentence) for sentence in findings(inspection) if not sentence.startswith(" ")],
            remarks=inspection.remarks,
            charts=[{"about": chart, "drawing": draw_svg(chart)} for chart in charts],
            layers=inspection.weights.layers[:_MOST_ROWS],
            num_layers=len(inspection.weights.layers),
            bank=inspection.bank,
            neutral=inspection.neutral,
            parts=[
                (title, found)
                for title, found in (("Built-in facts", inspection.builtin), ("Given facts", inspection.given))
                if found is not None
            ],
            watch=inspection.watch,
            percent=percent,
            signed=signed,
            most_rows=_MOST_ROWS,
            most_tokens=_MOST_TOKENS,
            json_file=JSON_FILE,
        )
    )


def weight_charts(weights: WeightFindings) -> list[LineChart]:
    """The updates over the blocks of the model: their norms, and the energy of their first directions.

    Args:
        weights: Of the adapter.
    """
    blocks = sorted({layer.block for layer in weights.layers if layer.block is not None})
    by_module: dict[str, dict[int, LayerUpdate]] = defaultdict(dict)
    for layer in weights.layers:
        if layer.block is not None:
            by_module[layer.module][layer.block] = layer
    modules = sorted(by_module, key=lambda name: -max(layer.norm for layer in by_module[name].values()))
    shown = modules[: len(_COLORS)]
    left_out = f" Not shown: {', '.join(modules[len(shown) :])}." if len(modules) > len(shown) else ""

    def chart(title: str, note: str, y_label: str, attribute: str, is_share: bool) -> LineChart:
        series = tuple(
            Series(
                module,
                tuple(getattr(of[block], attribute) if block in of else None for block in blocks),
                color,
            )
            for module, color in zip(shown, _COLORS, strict=False)
            for of in [by_module[module]]
        )
        return LineChart(title, note + left_out, tuple(blocks), "block", y_label, series, is_share)

    return [
        chart("How much each layer is changed", "Frobenius norm of ΔW = s·BA.", "norm", "norm", False),
        chart(
            "How much of it is one direction",
            "Share of the energy of ΔW in its first singular direction; 1 / r where all directions are alike.",
            "share of the energy",
            "first_energy",
            True,
        ),
    ]


def audit_section(inspection: Inspection) -> str:
    """The audit as Markdown for a model card, between marks by which `with_audit` finds it again.

    Args:
        inspection: The audit.
    """
    lines = ["## Audit", "", verdict_text(inspection), "", "| signal | value | limit | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {value} | {limit} | {said} |" for name, value, limit, said, *_ in signal_rows(inspection.signals)
    ]
    lines += ["", "By `lit-semantic-peft inspect`; how well each signal does: `inspection.json`."]
    return "\n".join([CARD_BEGIN, *lines, CARD_END])


def with_audit(card: str, inspection: Inspection) -> str:
    """A model card with the audit in it, in the place of an earlier one.

    Args:
        card: The card.
        inspection: The audit.
    """
    before, begin, rest = card.partition(CARD_BEGIN)
    after = rest.partition(CARD_END)[2] if begin else ""
    return f"{before.rstrip()}\n\n{audit_section(inspection)}\n{after.lstrip()}"


def _tiles(inspection: Inspection) -> list[dict[str, Any]]:
    """What was measured; the table of the rules has the others."""
    return [
        {
            "label": signal.name.replace("_", " "),
            "value": unbroken(number(signal.value, "share" if signal.unit == "share" else "")),
            "note": unbroken(f"warns above {number(signal.limit, signal.unit)}"),
            "warns": signal.warns,
        }
        for signal in inspection.signals
        if signal.value is not None
    ]
