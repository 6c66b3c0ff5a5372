"""Charts as inline SVG for the page, coloured by its style sheet, so that one drawing serves light and dark."""

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from lit_semantic_peft.reports.charts.kinds import BeforeAfterChart, Histogram, LineChart
from lit_semantic_peft.reports.phrases import percent

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 47

# `Markup.format` escapes what is filled in.
_RECT = Markup('<rect class="{} bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
_GRID_LINE = Markup(
    '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
)


def draw_svg(chart: LineChart | Histogram | BeforeAfterChart) -> Markup | None:
    """The chart as an `svg` element; hovering a mark names it and its numbers.

    Args:
        chart: The description.

    Returns:
        The drawing; None where nothing was measured.
    """
    if not chart.is_measured:
        return None
    if isinstance(chart, Histogram):
        return _histogram(chart)
    return _lines(chart) if isinstance(chart, LineChart) else _before_after(chart)


def _histogram(chart: Histogram) -> Markup:
    edges = chart.edges.tolist()
    totals = [sum(bars) for bars in zip(*(one.measured for one in chart.series), strict=True)]
    y_ticks = _ticks(0, max(1, *totals), integer=True)
    frame = _Frame(edges[0], edges[-1], 0, max(*totals, y_ticks[-1]))
    parts = [frame.grid(y_ticks, [_number(tick) for tick in y_ticks])]
    x_ticks = [tick for tick in _ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    parts.append(frame.x_axis(x_ticks, [_number(tick) for tick in x_ticks], chart.x_label))
    gap = 0.6 if len(edges) > 30 else 1.0
    for bar, (low, high) in enumerate(pairwise(edges)):
        base = 0.0
        for one in chart.series:
            count = one.measured[bar]
            if not count:
                continue
            x, width = frame.x(low) + gap / 2, frame.x(high) - frame.x(low) - gap
            top, bottom = frame.y(base + count), frame.y(base)
            parts.append(
                _RECT.format(
                    one.color, x, top, width, max(0.5, bottom - top - 0.6),
                    f"{one.label}: {count:.0f} of the {chart.y_label} between {_number(low)} and {_number(high)}",
                )
            )  # fmt: skip
            base += count
    return _svg(parts, chart.title)


def _before_after(chart: BeforeAfterChart) -> Markup:
    left, right, step = 270, 34, 44
    height = step * len(chart.rows) + 34

    def x(share: float) -> float:
        return left + share * (WIDTH - left - right)

    spoken = [
        f"{row.label}, {row.facts}: {percent(row.before)} before, {percent(row.after)} after" for row in chart.rows
    ]
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="6" y2="{1}"/>'
               '<text x="{0:.1f}" y="{2}" text-anchor="middle">{3} %</text>').format(
            x(tick), height - 28, height - 8, round(100 * tick)
        )
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]  # fmt: skip
    for place, row in enumerate(chart.rows):
        y = step * place + 26
        parts += [
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 14, height_of_text, text)
            for height_of_text, text in ((y - 4, row.label), (y + 13, row.facts))
        ]
        marks = [Markup("<title>{}</title>").format(spoken[place])]
        if row.before is not None and row.after is not None:
            marks.append(
                Markup('<line class="{} span" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>').format(
                    row.color, x(row.before), x(row.after), y=y
                )
            )
        if row.before is not None:
            marks.append(
                Markup('<circle class="{} ring" cx="{:.1f}" cy="{}" r="5"/>').format(row.color, x(row.before), y)
            )
        if row.after is not None:
            marks.append(
                Markup('<circle class="{} mark" cx="{:.1f}" cy="{}" r="6"/>').format(row.color, x(row.after), y)
            )
            is_first = row.after < 0.05  # a centred number would touch the row's name
            marks.append(
                Markup('<text class="value" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                    x(row.after) - 6 * is_first, y - 11, "start" if is_first else "middle", percent(row.after)
                )
            )
        if row.before is None and row.after is None:
            marks.append(Markup('<text x="{}" y="{}">not measured</text>').format(left, y + 4))
        parts.append(Markup("<g>{}</g>").format(Markup("").join(marks)))
    return _svg(parts, f"{chart.title}. {'; '.join(spoken)}.", height)


def _lines(chart: LineChart) -> Markup:
    x, is_share = chart.x, chart.is_share
    measured = [value for one in chart.series for value in one.measured]
    y_ticks = _ticks(0, max(*measured, 0.02 if is_share else 1e-6))
    if is_share:
        y_ticks = [tick for tick in y_ticks if tick <= 1.0 + 1e-9]
    frame = _Frame(min(x), max(*x, min(x) + 1), 0, max(y_ticks[-1], *measured))
    parts = [frame.grid(y_ticks, [f"{_number(100 * tick)} %" if is_share else _number(tick) for tick in y_ticks])]
    x_ticks = [tick for tick in _ticks(min(x), max(*x, min(x) + 1), integer=True) if min(x) <= tick <= max(x)]
    parts.append(frame.x_axis(x_ticks, [_number(tick) for tick in x_ticks], chart.x_label))
    for one in chart.series:
        run: list[str] = []
        runs = [run]
        dots = []
        for place, value in zip(x, one.values, strict=True):
            if value is None or not math.isfinite(value):
                run = []
                runs.append(run)
                continue
            run.append(f"{frame.x(place):.1f},{frame.y(value):.1f}")
            text = f"{100 * value:.1f} %" if is_share else _number(value)
            dots.append(
                Markup('<g class="dot"><circle class="hit" cx="{0:.1f}" cy="{1:.1f}" r="11"/>'
                       '<circle class="{2} mark" cx="{0:.1f}" cy="{1:.1f}" r="3.2"/><title>{3}</title></g>').format(
                    frame.x(place), frame.y(value), one.color, f"{one.label}, {chart.x_label} {place}: {text}"
                )
            )  # fmt: skip
        parts += [
            Markup('<polyline class="{} line" points="{}"/>').format(one.color, " ".join(run)) for run in runs if run
        ]
        parts += dots
    return _svg(parts, chart.title)


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
