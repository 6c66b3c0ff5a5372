"""Inline SVG for the page, coloured by its style sheet, so that one drawing serves light and dark."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from lit_semantic_peft.reports.summary import BeforeAfter, percent
from lit_semantic_peft.reports.views import Histogram

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 47

# `Markup.format` escapes what is filled in.
_RECT = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
_GRID_LINE = Markup(
    '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
)


def histogram_svg(histogram: Histogram, x_label: str) -> Markup:
    """The stacked histogram; hovering a bar names its range and its count.

    Args:
        histogram: The counts.
        x_label: Name of the distance.
    """
    edges = [float(edge) for edge in histogram.edges]
    totals = [sum(int(counts[bar]) for counts in histogram.counts.values()) for bar in range(len(edges) - 1)]
    y_ticks = _ticks(0, max(1, max(totals)), integer=True)
    frame = _Frame(edges[0], edges[-1], 0, max(max(totals), y_ticks[-1]))
    parts = [frame.grid(y_ticks, [_number(tick) for tick in y_ticks])]
    x_ticks = [tick for tick in _ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    parts.append(frame.x_axis(x_ticks, [_number(tick) for tick in x_ticks], x_label))
    gap = 0.6 if len(edges) > 30 else 1.0
    for bar, (low, high) in enumerate(pairwise(edges)):
        base = 0
        for series, (label, counts) in enumerate(histogram.counts.items()):
            count = int(counts[bar])
            if not count:
                continue
            x, width = frame.x(low) + gap / 2, frame.x(high) - frame.x(low) - gap
            top, bottom = frame.y(base + count), frame.y(base)
            parts.append(
                _RECT.format(
                    _series_class(histogram, label, series), x, top, width, max(0.5, bottom - top - 0.6),
                    f"{label}: {count} of the facts between {_number(low)} and {_number(high)}",
                )
            )  # fmt: skip
            base += count
    return _svg(parts, f"Histogram of {x_label}, kept and dropped facts stacked")


def histogram_legend(histogram: Histogram) -> list[tuple[str, str, int]]:
    """Label, colour class and number of facts of each series."""
    return [
        (label, _series_class(histogram, label, series), int(counts.sum()))
        for series, (label, counts) in enumerate(histogram.counts.items())
    ]


def before_after_svg(rows: Sequence[tuple[str, BeforeAfter, str]], title: str) -> Markup | None:
    """Shares before (ring) and after (dot) training, a row each; hovering a row names both.

    Args:
        rows: Label, shares and colour class of each row; a row that was not measured says so.
        title: What the chart shows, for screen readers.

    Returns:
        The chart; None where nothing was measured.
    """
    if all(share.before is None and share.after is None for _, share, _ in rows):
        return None
    left, right, step = 208, 34, 38
    height = step * len(rows) + 34

    def x(share: float) -> float:
        return left + share * (WIDTH - left - right)

    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="6" y2="{1}"/>'
               '<text x="{0:.1f}" y="{2}" text-anchor="middle">{3} %</text>').format(
            x(tick), height - 28, height - 8, round(100 * tick)
        )
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]  # fmt: skip
    for row, (label, share, css) in enumerate(rows):
        y = step * row + 26
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 14, y + 4, label))
        marks = [
            Markup("<title>{}: {} before, {} after</title>").format(label, percent(share.before), percent(share.after))
        ]
        if share.before is not None and share.after is not None:
            marks.append(
                Markup('<line class="{} span" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>').format(
                    css, x(share.before), x(share.after), y=y
                )
            )
        if share.before is not None:
            marks.append(Markup('<circle class="{} ring" cx="{:.1f}" cy="{}" r="5"/>').format(css, x(share.before), y))
        if share.after is not None:
            marks.append(Markup('<circle class="{} mark" cx="{:.1f}" cy="{}" r="6"/>').format(css, x(share.after), y))
            marks.append(
                Markup('<text class="value" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    x(share.after), y - 11, percent(share.after)
                )
            )
        if share.before is None and share.after is None:
            marks.append(Markup('<text x="{}" y="{}">not measured</text>').format(left, y + 4))
        parts.append(Markup("<g>{}</g>").format(Markup("").join(marks)))
    return _svg(parts, title, height)


def lines_svg(
    x: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    x_label: str,
    title: str,
    classes: Sequence[str] = ("s0", "s1", "s2"),
    share: bool = False,
) -> Markup | None:
    """Lines over epochs; hovering a point names its value. An unmeasured point leaves a gap.

    Args:
        x: Epochs.
        series: Values by label, one per epoch.
        x_label: Name of the horizontal axis.
        title: What the chart shows, for screen readers.
        classes: Colour class of each series.
        share: Whether the values are shares in [0, 1], shown in per cent.

    Returns:
        The chart; None where nothing was measured.
    """
    measured = [value for values in series.values() for value in values if value is not None and math.isfinite(value)]
    if not measured:
        return None
    y_ticks = _ticks(0, max(*measured, 0.02 if share else 1e-6))
    if share:
        y_ticks = [tick for tick in y_ticks if tick <= 1.0 + 1e-9]
    frame = _Frame(min(x), max(*x, min(x) + 1), 0, max(y_ticks[-1], *measured))
    parts = [frame.grid(y_ticks, [f"{_number(100 * tick)} %" if share else _number(tick) for tick in y_ticks])]
    x_ticks = [tick for tick in _ticks(min(x), max(*x, min(x) + 1), integer=True) if min(x) <= tick <= max(x)]
    parts.append(frame.x_axis(x_ticks, [_number(tick) for tick in x_ticks], x_label))
    for (label, values), css in zip(series.items(), classes, strict=False):
        run: list[str] = []
        runs = [run]
        dots = []
        for epoch, value in zip(x, values, strict=True):
            if value is None or not math.isfinite(value):
                run = []
                runs.append(run)
                continue
            run.append(f"{frame.x(epoch):.1f},{frame.y(value):.1f}")
            text = f"{100 * value:.1f} %" if share else _number(value)
            dots.append(
                Markup('<g class="dot"><circle class="hit" cx="{0:.1f}" cy="{1:.1f}" r="11"/>'
                       '<circle class="{2} mark" cx="{0:.1f}" cy="{1:.1f}" r="3.2"/><title>{3}</title></g>').format(
                    frame.x(epoch), frame.y(value), css, f"{label}, {x_label} {epoch}: {text}"
                )
            )  # fmt: skip
        parts += [Markup('<polyline class="{} line" points="{}"/>').format(css, " ".join(run)) for run in runs if run]
        parts += dots
    return _svg(parts, title)


class _Frame:
    """Maps numbers to the drawing."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self._x, self._y = (x_low, max(x_high - x_low, 1e-12)), (y_low, max(y_high - y_low, 1e-12))

    def x(self, value: float) -> float:
        return _LEFT + (value - self._x[0]) / self._x[1] * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self._y[0]) / self._y[1] * (HEIGHT - _TOP - _BOTTOM)

    def grid(self, ticks: Sequence[float], labels: Sequence[str]) -> Markup:
        lines = [
            _GRID_LINE.format(
                _LEFT, WIDTH - _RIGHT, self.y(tick), self.y(tick), _LEFT - 8, self.y(tick) + 4, label
            )
            for tick, label in zip(ticks, labels, strict=True)
        ]  # fmt: skip
        return Markup("").join(lines)

    def x_axis(self, ticks: Sequence[float], labels: Sequence[str], name: str) -> Markup:
        texts = [
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(self.x(tick), HEIGHT - 25, label)
            for tick, label in zip(ticks, labels, strict=True)
        ]
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        texts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, HEIGHT - 5, name))
        return Markup("").join(texts)


def _svg(parts: Sequence[Markup], title: str, height: int = HEIGHT) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(parts)
    )


def _series_class(histogram: Histogram, label: str, series: int) -> str:
    if label == "kept":
        return str(escape("kept"))
    return f"d{(series - ('kept' in histogram.counts)) % 5}"


def _ticks(low: float, high: float, *, integer: bool = False) -> list[float]:
    """Three to six round numbers from `low` on; the last one may lie above `high`."""
    raw = max(high - low, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    factors = (1, 2, 5, 10) if integer else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= raw * 0.999)
    if integer:
        step = 1 if high - low <= 10 and low > 0 else max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [tick * step for tick in range(first, last + 1)]


def _number(value: float) -> str:
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")
