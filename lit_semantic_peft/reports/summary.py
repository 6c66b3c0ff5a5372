"""`summary.json`: the numbers of a run, in one small file, and as the short table that ends a run."""

import types
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
from rich.table import Table

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.statistics import bootstrap_interval


class _Json:
    """To and from plain JSON types, for frozen dataclasses of numbers, texts, mappings and one another."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types, in their order; None is "not measured"."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, value: Any, where: str = "summary") -> Self:
        """Builds the object from JSON types; a missing optional field is None.

        Args:
            value: What `to_json` gave.
            where: Name of the value in messages.

        Raises:
            InputError: Not an object, an unknown field, or a required one missing.
        """
        if not isinstance(value, Mapping):
            raise InputError(f"`{where}`: expected an object, got {type(value).__name__}")
        known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(value) - set(known)):
            raise InputError(f"`{where}`: unknown field(s) {', '.join(unknown)}; known are {', '.join(known)}")
        required = [n for n, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
        if missing := [name for name in required if value.get(name) is None]:
            raise InputError(f"`{where}`: missing field(s) {', '.join(missing)}")
        hints = get_type_hints(cls)
        return cls(
            **{
                name: _typed(hints[name], item, f"{where}.{name}")
                for name, item in value.items()
                if item is not None or known[name].default is None
            }
        )


@dataclass(frozen=True, slots=True)
class BeforeAfter(_Json):
    """A share in [0, 1] under the base model and after training; None where it was not measured."""

    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Recall(_Json):
    """Recall of some facts.

    Attributes:
        teacher_forced: Share of facts whose target tokens all win under the true prefix.
        generated: Share of facts whose normalised free answer is the target exactly.
    """

    teacher_forced: BeforeAfter = BeforeAfter()
    generated: BeforeAfter = BeforeAfter()


@dataclass(frozen=True, slots=True)
class RecallByFate(_Json):
    """Recall of the kept and of the dropped facts."""

    kept: Recall = Recall()
    dropped: Recall = Recall()


@dataclass(frozen=True, slots=True)
class Estimate(_Json):
    """A mean with its 95 % bootstrap interval over facts (`bootstrap_interval`).

    Attributes:
        mean: The mean.
        low: Lower end.
        high: Upper end.
        num_facts: Number of facts, or of what else is said, that it is a mean of.
    """

    mean: float
    low: float
    high: float
    num_facts: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """The estimate from one number per fact; None is "not measured", and so is the result where all are."""
        interval = bootstrap_interval([float(value) for value in values if value is not None])
        return None if interval is None else cls(interval.mean, interval.low, interval.high, interval.num_facts)


@dataclass(frozen=True, slots=True)
class Sides(_Json):
    """A score under the base model and after training; a score that compares the two is in `after` alone."""

    before: Estimate | None = None
    after: Estimate | None = None


@dataclass(frozen=True, slots=True)
class ScoreRecord(_Json):
    """One of `SCORES`, of the kept and of the dropped facts.

    Attributes:
        name: Name of the score.
        kept: Over the kept facts.
        dropped: Over the facts that a filter dropped.
    """

    name: str
    kept: Sides = Sides()
    dropped: Sides = Sides()


@dataclass(frozen=True, slots=True)
class RetentionRecord(_Json):
    """What happened to everything else.

    Attributes:
        nll_before: Mean negative log-likelihood of unrelated text, base model, nats per token, over all tokens.
        nll_after: The same after training.
        nll_delta: After minus before by text, positive is harm; `num_facts` is the number of texts. Its mean is over
            texts, so it may differ from `nll_after` − `nll_before`.
        known: Share of the facts without a part in training that the base model answers right and that the trained
            model still does.
    """

    nll_before: float | None = None
    nll_after: float | None = None
    nll_delta: Estimate | None = None
    known: Estimate | None = None


@dataclass(frozen=True, slots=True)
class EpochRecord(_Json):
    """What an epoch of training ended with.

    Attributes:
        epoch: Number of the epoch, counted from 0.
        global_step: Optimizer steps taken by its end.
        loss: Mean training loss of the epoch, weighted as in training, nats per token.
        val_nll: Mean negative log-likelihood of the kept facts at its end, nats per token.
        recall: Teacher-forced recall of the kept facts at its end, in [0, 1].
    """

    epoch: int
    global_step: int | None = None
    loss: float | None = None
    val_nll: float | None = None
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class InterferenceRecord(_Json):
    """One measurement of the gradient matrix.

    Attributes:
        epoch: Epoch of the measurement; the matrix after the last epoch carries the number of epochs.
        global_step: Optimizer steps taken before.
        conflict_rate: Share of the pairs of sampled facts with gradient cosine below −0.05.
        net_transfer_median: Median of the sampled facts' net transfer.
        share_net_transfer_below_minus_1: Share of the sampled facts whose learning the others undo.
        share_net_transfer_below_0: Share of the sampled facts that the others hurt on balance.
    """

    epoch: int
    global_step: int | None = None
    conflict_rate: float | None = None
    net_transfer_median: float | None = None
    share_net_transfer_below_minus_1: float | None = None
    share_net_transfer_below_0: float | None = None


@dataclass(frozen=True, slots=True)
class Seconds(_Json):
    """Wall-clock seconds by part of the run, those of an interrupted run with it up to its last checkpoint.

    They add up to what the user waited, without the start of the program and the making of the last report.

    Attributes:
        setup: Reading facts, filtering, loading the base model.
        scoring: What the base model says of the facts, for distances and strata; next to nothing where it is known.
        training: The epochs, and the interference measured during and after them.
        evaluation: Asking the trained model, and writing down what is known.
    """

    setup: float | None = None
    scoring: float | None = None
    training: float | None = None
    evaluation: float | None = None


@dataclass(frozen=True, slots=True)
class FactCounts(_Json):
    """What follows from the fact table alone, over the facts that were there to be trained (split `inject`).

    Attributes:
        num_facts: Facts that were offered to the filters.
        num_kept: Facts that were trained.
        num_dropped: Facts that a filter dropped.
        dropped_by_reason: Number of dropped facts by reason, the most frequent first.
        recall: Recall of the kept and of the dropped facts.
        locality: Share of the neighbours whose answer stayed as it was.
        num_neighbors: Number of those neighbours.
        pushed_away: Share of the kept facts whose distance grew.
        scores: What was really learned: every score that was measured, in the order of `SCORES`.
    """

    num_facts: int
    num_kept: int
    num_dropped: int
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    recall: RecallByFate = RecallByFate()
    locality: float | None = None
    num_neighbors: int | None = None
    pushed_away: float | None = None
    scores: tuple[ScoreRecord, ...] = ()

    def score(self, name: str) -> ScoreRecord:
        """A score by name; one without numbers where it was not measured."""
        return next((one for one in self.scores if one.name == name), ScoreRecord(name))


@dataclass(frozen=True, slots=True)
class Summary(FactCounts):
    """What `summary.json` holds. Everything but the three counts is optional; None is "not measured".

    Attributes:
        name: Name of the run.
        created: When it ended, ISO 8601 with time zone.
        command: The command line.
        base_model: Name by which a user can load the base model.
        base_model_note: What else must be known about it (dequantised weights, for example).
        peft_type: Kind of adapter, as `peft` names it.
        trainable_parameters: Number of trained parameters.
        distance_name: Class name of the configured distance.
        epochs: One record per epoch.
        interference: One record per measurement of the gradient matrix, in order.
        retention: What happened to unrelated text and to known facts.
        seconds: Where the time went.
        peak_memory_gb: Peak resident memory of the process, 10⁹ bytes.
        versions: Package versions by name.
        config: The configuration as plain types.
    """

    name: str | None = None
    created: str | None = None
    command: str | None = None
    base_model: str | None = None
    base_model_note: str | None = None
    peft_type: str | None = None
    trainable_parameters: int | None = None
    distance_name: str | None = None
    epochs: tuple[EpochRecord, ...] = ()
    interference: tuple[InterferenceRecord, ...] = ()
    retention: RetentionRecord | None = None
    seconds: Seconds | None = None
    peak_memory_gb: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def count_facts(facts: pa.Table, probes: pa.Table | None = None) -> FactCounts:
    """Counts facts and shares from the tables, so that every number of a summary is a number of its rows.

    Args:
        facts: The fact table (`facts.parquet`). Rows of the splits `retain` and `probe` are neither kept nor dropped.
        probes: The probe table (`probes.parquet`).

    Returns:
        Counts, and shares over the rows where the value was measured.
    """
    rows = [row for row in facts.to_pylist() if row["split"] in (None, "", "inject")]
    kept = [row for row in rows if row["kept"] is not False]
    dropped = [row for row in rows if row["kept"] is False]
    reasons = Counter(row["drop_reason"] or "no reason given" for row in dropped)
    neighbors = []
    if probes is not None:
        neighbors = [row for row in probes.to_pylist() if row["kind"] == "neighborhood"]
    return FactCounts(
        num_facts=len(rows),
        num_kept=len(kept),
        num_dropped=len(dropped),
        dropped_by_reason=dict(reasons.most_common()),
        recall=RecallByFate(_recall(kept), _recall(dropped)),
        locality=_share(row["unchanged"] for row in neighbors),
        num_neighbors=len(neighbors) if probes is not None else None,
        pushed_away=_share(row["pushed_away"] for row in kept),
        scores=_scores(kept, dropped),
    )


def summarize(facts: pa.Table, probes: pa.Table | None = None, **fields_of_run: Any) -> Summary:
    """A summary whose counts and shares come from the tables and whose other fields are given.

    Args:
        facts: The fact table.
        probes: The probe table.
        fields_of_run: Further fields of `Summary`, by name; they win over what the tables say.
    """
    counts = count_facts(facts, probes)
    from_tables = {item.name: getattr(counts, item.name) for item in fields(counts)}
    return Summary(**(from_tables | fields_of_run))


_IN_TERMINAL = {
    "paraphrases answered": "generalization",
    "conclusions said": "portability",
    "turns of doubt withstood": "robustness_plain",
    "turns of doubt withstood, chat": "robustness_chat",
}
"""Scores of the kept facts in the short table, by label."""


def terminal_summary(summary: Summary) -> Table:
    """A short table of numbers for the end of a run.

    Args:
        summary: The run's summary.

    Returns:
        A table to print with `rich`.
    """
    table = Table(title=summary.name, title_justify="left", show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    kept, dropped = summary.recall.kept, summary.recall.dropped

    def add(label: str, numbers: BeforeAfter) -> None:
        if numbers.before is not None or numbers.after is not None:
            table.add_row(label, percent(numbers.before), percent(numbers.after))

    reasons = ", ".join(f"{count} {reason_phrase(reason)}" for reason, count in summary.dropped_by_reason.items())
    table.add_row("facts kept", "", f"{summary.num_kept} of {summary.num_facts}")
    if summary.num_dropped:
        table.add_row("facts dropped", "", reasons or str(summary.num_dropped))
    add("kept facts generated exactly", kept.generated)
    add("kept facts recalled, teacher-forced", kept.teacher_forced)
    add("dropped facts generated exactly", dropped.generated)
    for label, name in _IN_TERMINAL.items():
        sides = summary.score(name).kept
        if sides.after is not None:
            table.add_row(label, estimate_text(sides.before) if sides.before else "", estimate_text(sides.after))
    table.add_row("neighbours' answers unchanged", "", percent(summary.locality))
    if (retention := summary.retention) is not None:
        if retention.known is not None:
            table.add_row("other known facts still known", "", estimate_text(retention.known))
        if retention.nll_before is not None and retention.nll_after is not None:
            table.add_row("unrelated text, nats per token", f"{retention.nll_before:.3f}", f"{retention.nll_after:.3f}")
    table.add_row("kept facts pushed away", "", percent(summary.pushed_away))
    if summary.interference:
        first, last = summary.interference[0], summary.interference[-1]
        before = percent(first.conflict_rate) if first is not last else ""
        table.add_row("pairs of facts in conflict", before, percent(last.conflict_rate))
    if (total := total_seconds(summary.seconds)) is not None:
        table.add_row("seconds in all", "", f"{total:.0f}")
    if summary.peak_memory_gb is not None:
        table.add_row("peak memory, GB", "", f"{summary.peak_memory_gb:.1f}")
    return table


def percent(share: float | None) -> str:
    """A share as text for people; never rounded up to all or down to none.

    Example:
        >>> percent(0.5), percent(1.0), percent(0.9999), percent(0.0001), percent(None)
        ('50 %', '100 %', '>99 %', '<1 %', 'not measured')
    """
    if share is None:
        return "not measured"
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return ">99 %"
    if rounded == 0 and share > 0:
        return "<1 %"
    return f"{rounded} %"


def estimate_text(estimate: Estimate | None, is_share: bool = True) -> str:
    """A mean with its interval as text for people.

    Example:
        >>> estimate_text(Estimate(0.5, 0.35, 0.625, 40)), estimate_text(Estimate(0.25, 0.125, 1.0, 9), is_share=False)
        ('50 % (35–62)', '0.250 (0.125 to 1.000)')
    """
    if estimate is None:
        return "not measured"
    if not is_share:
        return f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})".replace("-", "−")
    return f"{percent(estimate.mean)} ({round(100 * estimate.low)}–{round(100 * estimate.high)})"


def reason_phrase(reason: str) -> str:
    """A drop reason as words.

    Example:
        >>> reason_phrase("too_far"), reason_phrase("mean_variance")
        ('too far', 'left out by mean and variance of the distances')
    """
    phrases = {
        "mean_variance": "left out by mean and variance of the distances",
        "random": "left out at random",
    }
    return phrases.get(reason, reason.replace("_", " "))


def total_seconds(seconds: Seconds | None) -> float | None:
    """The sum of what was measured; None where nothing was."""
    if seconds is None:
        return None
    parts = [part for part in seconds.to_json().values() if part is not None]
    return sum(parts) if parts else None


def _recall(rows: list[dict[str, Any]]) -> Recall:
    return Recall(
        teacher_forced=BeforeAfter(
            *(
                _share(row[name] for row in rows)
                for name in ("efficacy_teacher_forced_before", "efficacy_teacher_forced_after")
            )
        ),
        generated=BeforeAfter(*(_share(row[name] for row in rows) for name in ("efficacy_before", "efficacy_after"))),
    )


def _scores(kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> tuple[ScoreRecord, ...]:
    def sides(rows: list[dict[str, Any]], before: str | None, after: str) -> Sides:
        return Sides(
            before=Estimate.of(row[before] for row in rows) if before is not None else None,
            after=Estimate.of(row[after] for row in rows),
        )

    records = (
        ScoreRecord(one.name, *(sides(rows, one.before, one.after) for rows in (kept, dropped))) for one in SCORES
    )
    return tuple(record for record in records if record.kept != Sides() or record.dropped != Sides())


def _share(flags: Any) -> float | None:
    measured = [flag for flag in flags if flag is not None]
    return sum(measured) / len(measured) if measured else None


def _plain(value: Any) -> Any:
    if isinstance(value, _Json):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and value != value:
        return None  # NaN is "not measured"; JSON has no NaN
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
        origin = get_origin(hint)
        if value is None:
            return None
    if is_dataclass(hint) and issubclass(hint, _Json):  # type: ignore[arg-type]
        return hint.from_json(value, where)  # type: ignore[union-attr]
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"`{where}`: expected a list, got {type(value).__name__}")
        return tuple(_typed(get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    expected = origin or hint
    accepted = (int, float) if expected is float else expected
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected in (int, float)):
        raise InputError(f"`{where}`: expected {expected.__name__}, got {value!r}")
    return value
