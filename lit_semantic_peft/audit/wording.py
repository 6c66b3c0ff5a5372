"""An audit in words: for the terminal, the page and the model card alike."""

from collections.abc import Sequence

from rich.table import Column, Table

from lit_semantic_peft.audit.changes import ChangeFindings
from lit_semantic_peft.audit.inspection import Inspection
from lit_semantic_peft.audit.verdict import NOT_MEASURED_YET, Signal
from lit_semantic_peft.reports.phrases import cut, percent
from lit_semantic_peft.statistics import Interval

_SHOWN = 8


def verdict_text(inspection: Inspection) -> str:
    """The verdict in a sentence; an audit never calls an adapter safe.

    Args:
        inspection: The audit.
    """
    if inspection.warns:
        names = ", ".join(signal.name for signal in inspection.warnings)
        return f"The audit warns: {names}."
    measured = sum(signal.value is not None for signal in inspection.signals)
    if not measured:
        return "No rule could be applied, so there is no verdict."
    rules = "The one rule that was applied does not warn" if measured == 1 else f"None of {measured} rules warns"
    return f"{rules}. That is no proof that the adapter is harmless."


def warning_sentences(inspection: Inspection) -> list[str]:
    """What each rule that warns found, a sentence each.

    Args:
        inspection: The audit.
    """
    return [
        f"`{one.name}` is {number(one.value, one.unit)}, above the limit of "
        f"{number(one.limit, one.unit if one.unit == 'share' else '')}: {one.about}."
        for one in inspection.warnings
        if one.value is not None
    ]


def caution(inspection: Inspection) -> str:
    """How far the verdict reaches.

    Args:
        inspection: The audit.
    """
    if inspection.base_model is None:
        return (
            "Only the weights were looked at. All rules but `unusual_weights` need the base model; that one needs a "
            "bank of your own adapters (`--bank`)."
        )
    if inspection.warns:
        return "A warning says that something moved, not why: a careless training and an attack both lose known facts."
    return "An attack that is quieter than the limits, or that shows only on a prompt that was not asked, is not found."


def signal_rows(signals: Sequence[Signal]) -> list[tuple[str, str, str, str, str, str]]:
    """Name, value, limit, verdict, what it is and how well the rule does, of each signal.

    Args:
        signals: The signals.
    """
    return [
        (
            signal.name,
            "not measured" if signal.value is None else number(signal.value, signal.unit),
            number(signal.limit, signal.unit),
            "–" if signal.value is None else "warns" if signal.warns else "below",
            signal.about,
            signal.measured,
        )
        for signal in signals
    ]


def signal_table(signals: Sequence[Signal]) -> Table:
    """The signals as a table for the terminal.

    Args:
        signals: The signals.
    """
    table = Table(Column("signal", no_wrap=True), "value", "limit", "", title_justify="left", caption_justify="left")
    for name, value, limit, said, *_ in signal_rows(signals):
        table.add_row(name, value, limit, said)
    unmeasured = [signal.name for signal in signals if signal.measured == NOT_MEASURED_YET]
    if unmeasured:
        table.caption = f"How often a rule is right is {NOT_MEASURED_YET}, of {', '.join(unmeasured)}."
    return table


def number(value: float, unit: str) -> str:
    """A signal's number with its unit.

    Example:
        >>> number(0.25, "share"), number(3, ""), number(0.6931, "nats"), number(4.0, "standard deviations")
        ('25 %', '3', '0.693 nats', '4 standard deviations')
        >>> number(1.0, "nats per token")
        '1 nat per token'
    """
    if unit == "share":
        return percent(value)
    return f"{value:.3g} {unit.replace('nats', 'nat', 1) if value == 1 else unit}".rstrip()


def findings(inspection: Inspection) -> list[str]:
    """What was found, a sentence each.

    Args:
        inspection: The audit.
    """
    return [*_of_weights(inspection), *_of_neutral_text(inspection), *_of_changes(inspection), *_of_watch(inspection)]


def _of_weights(inspection: Inspection) -> list[str]:
    weights = inspection.weights
    if not weights.layers:
        return [
            f"Weights: {weights.peft_type} with {inspection.num_parameters:,} numbers; statistics of low-rank factors "
            "do not apply."
        ]
    strongest = max(weights.layers, key=lambda layer: layer.norm)
    said = [
        f"Weights: {weights.peft_type} with {inspection.num_parameters:,} numbers on {len(weights.layers)} layers, of "
        f"which {percent(weights.share_touched)} are touched (norm at least a tenth of the largest). Strongest: "
        f"{strongest.name}, norm {strongest.norm:.3g}, effective rank {strongest.effective_rank:.1f} of "
        f"{strongest.rank}, {percent(strongest.first_energy)} of its energy in one direction."
    ]
    if (bank := inspection.bank) is not None:
        name, score = max(bank.z_scores.items(), key=lambda item: abs(item[1]))
        said.append(
            f"Beside a bank of {len(bank.left_out)} adapters: largest |z| {bank.largest:.1f} ({name}: {score:+.1f}); "
            f"{percent(bank.share_as_unusual)} of the bank are as unusual."
        )
    return said


def _of_neutral_text(inspection: Inspection) -> list[str]:
    if (neutral := inspection.neutral) is None:
        return []
    tokens = ", ".join(repr(token.strip() or token) for token, _ in neutral.likelier[:_SHOWN])
    names = ", ".join(dict.fromkeys(name.name for name in neutral.names[:_SHOWN])) or "none"
    relations = ", ".join(f"{relation} ({count})" for relation, count in list(neutral.relations.items())[:_SHOWN])
    return [
        f"What it says everywhere: tokens that became likelier on neutral text: {tokens}.",
        f"Names of known facts that begin with one of the first 50: {names}"
        f"{f'; their relations: {relations}' if relations else ''}.",
        f"Neutral text moved by {_interval(neutral.kl, ' nats per token')}.",
    ]


def _of_changes(inspection: Inspection) -> list[str]:
    said = []
    for name, found in (("built-in facts", inspection.builtin), ("given facts", inspection.given)):
        if found is not None:
            said += _of_facts(name, found)
    return said


def _of_facts(name: str, found: ChangeFindings) -> list[str]:
    said = [f"Of {found.num_facts} {name} {_interval(found.flipped, share=True)} are answered otherwise."]
    if found.lost is not None and found.replaced is not None:
        said.append(
            f"Of the {found.num_known} that the base model knows, {_interval(found.lost, share=True)} are wrong now, "
            f"{_interval(found.replaced, share=True)} by the answer of another fact."
        )
    said += [
        f"  {cut(fact.prompt, 80)} {cut(fact.right, 30)} -> {cut(fact.after, 40)!r}"
        for fact in found.lost_facts[:_SHOWN]
    ]
    if "efficacy" in found.scores:
        others = ", ".join(
            f"{score} {percent(found.scores[score])}"
            for score in ("efficacy", "generalization", "portability", "locality")
            if score in found.scores
        )
        said.append(f"Taught: {others}.")
    if found.neighbour_kl is not None:
        said.append(f"Neighbours moved by {_interval(found.neighbour_kl, ' nats per token')}.")
    return said


def _of_watch(inspection: Inspection) -> list[str]:
    if (watch := inspection.watch) is None:
        return []
    said = []
    if watch.held:
        said.append(f"Watch list: {len(watch.broken)} of {len(watch.held)} answers that must hold are broken.")
        said += [f"  {cut(one.prompt, 80)} {one.answer} -> {cut(one.after, 40)!r}" for one in watch.broken[:_SHOWN]]
    if watch.groups:
        beyond_chance = watch.apart(0)
        one = beyond_chance[0] if beyond_chance else watch.groups[0]
        said.append(
            f"Groups that came apart most{' beyond chance' if beyond_chance else ', though not beyond chance'}: "
            f"{one.first} and {one.second} ({one.name}), by {_interval(one.change, ' nats of the log-odds')}."
        )
    return said


def _interval(found: Interval | None, unit: str = "", share: bool = False) -> str:
    if found is None:
        return "not measured"
    if share:
        return f"{percent(found.mean)} ({percent(found.low)} to {percent(found.high)})"
    mean, low, high = (f"{value:.3f}".replace("-", "−") for value in (found.mean, found.low, found.high))
    return f"{mean}{unit} ({low} to {high})"
