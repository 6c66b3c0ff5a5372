"""Numbers as they stand in the tables and sentences of the study."""

from collections.abc import Sequence

from experiments.study.cells import Measure
from experiments.study.comparisons import Comparison
from experiments.study.statistics import Sample

SCALE = {"%": 100.0, "nats": 1.0, "": 1.0}
NAMED = {"%": " points", "nats": " nats", "": ""}
"""What a difference is called."""

_DIGITS = {"%": 1, "nats": 2, "": 2}
_MAX_LISTED = 3


def number(value: float, unit: str, signed: bool = False) -> str:
    """A number without its unit; −0.00 lies below 0, +0.00 does not.

    Args:
        value: A share of 1 where the unit is %.
        unit: A key of `SCALE`.
        signed: Whether it is a difference.
    """
    return f"{SCALE[unit] * value:{'+' if signed else ''}.{_DIGITS[unit]}f}".replace("-", "−")


def interval(value: Sample, unit: str, num_comparisons: int = 1, signed: bool = False) -> str:
    """The interval alone, in brackets; see `number`."""
    return f"[{', '.join(number(end, unit, signed) for end in value.interval(num_comparisons))}]"


def tabled(value: Sample, unit: str, num_comparisons: int = 1, signed: bool = False) -> str:
    """Mean, interval, and of how many facts and seeds; see `number`."""
    if not value.num_facts:
        return "not measured"
    bounds = interval(value, unit, num_comparisons, signed)
    return f"{number(value.value, unit, signed)} {bounds} ({value.num_facts}×{value.num_seeds})"


def share(value: Sample) -> str:
    """A share with its interval."""
    return f"{number(value.value, '%')} % {interval(value, '%')}" if value.num_facts else "an unmeasured share"


def change(one: Comparison, unit: str) -> str:
    """A difference with its unit and corrected interval.

    Args:
        one: The difference.
        unit: A key of `SCALE`.
    """
    if not one.difference.num_facts:
        return "not measured"
    bounds = interval(one.difference, unit, one.num_comparisons, signed=True)
    return f"{number(one.difference.value, unit, signed=True)}{NAMED[unit]} {bounds}"


def verdict(found: Sequence[Comparison], measure: Measure) -> str:
    """Which arms are better or worse beyond their corrected intervals, and by how much; the others in short.

    Args:
        found: Comparisons of one family.
        measure: What is compared.

    Returns:
        Up to three sentences.
    """
    parts = []
    for sign, said in ((measure.better, "Better"), (-measure.better, "Worse"), (0, "No difference seen")):
        ones = [one for one in found if one.sign == sign]
        if sign == 0 and len(ones) > _MAX_LISTED:
            parts.append(f"{said}: {len(ones)} arms, {_range(ones, measure.unit)}.")
        elif ones:
            parts.append(f"{said}: {listed(ones, measure.unit)}.")
    return " ".join(parts)


def listed(found: Sequence[Comparison], unit: str) -> str:
    """Each arm with its difference.

    Args:
        found: Some.
        unit: A key of `SCALE`.
    """
    return ", ".join(f"`{one.label}` {change(one, unit)}" for one in found)


def headline(found: Sequence[Comparison], measure: Measure, arms: str, against: str) -> str:
    """How many arms are better and how many worse beyond their corrected intervals, in one sentence.

    Args:
        found: Comparisons of one family.
        measure: What is compared.
        arms: What they are, in the plural.
        against: What they are compared with, and in what.
    """
    better, worse = (sum(one.sign == sign for one in found) for sign in (measure.better, -measure.better))
    of_all = f"of the {len(found)} {arms}" if len(found) > 1 else f"of the {arms} tried"
    none = "Neither" if len(found) == 2 else "None"
    beats = f"{better or none} {of_all} {'are' if better > 1 else 'is'} seen to beat {against}"
    return f"{beats}; {worse or none.lower()} {'are' if worse > 1 else 'is'} seen to do worse."


def value_range(found: Sequence[Comparison], unit: str) -> str:
    """The least and the largest difference.

    Args:
        found: Some.
        unit: A key of `SCALE`.
    """
    values = [one.difference.value for one in found]
    least, most = (number(end, unit, signed=True) for end in (min(values), max(values)))
    return f"{least} to {most}{NAMED[unit]}"


def _range(found: Sequence[Comparison], unit: str) -> str:
    bounds = [one.difference.interval(one.num_comparisons) for one in found]
    ends = (min(low for low, _ in bounds), max(high for _, high in bounds))
    within = ", ".join(number(end, unit, signed=True) for end in ends)
    return f"{value_range(found, unit)}, all intervals within [{within}]"
