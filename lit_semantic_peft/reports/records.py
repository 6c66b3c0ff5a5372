"""The records that a run's JSON files hold: read strictly, written in the order of their fields."""

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from typing import Any, Self

from pydantic.dataclasses import dataclass

from lit_semantic_peft.reports.fact_records import ResistingFact, WeakWording
from lit_semantic_peft.reports.record_base import STRICT, Measured, Record, or_unmeasured
from lit_semantic_peft.statistics import bootstrap_interval


@dataclass(frozen=True, slots=True, config=STRICT)
class Estimate(Record):
    """A mean with its 95 % bootstrap interval over facts (`bootstrap_interval`).

    Attributes:
        mean: The mean.
        low: Lower bound.
        high: Upper bound.
        num_facts: Number of facts (or of texts, where noted) that it is a mean of.
    """

    mean: float
    low: float
    high: float
    num_facts: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """The estimate from one number per fact; None and NaN are not measured, and so is the result of them alone."""
        interval = bootstrap_interval([float(one) for one in map(or_unmeasured, values) if one is not None])
        return None if interval is None else cls(interval.mean, interval.low, interval.high, interval.num_facts)


@dataclass(frozen=True, slots=True, config=STRICT)
class Sides(Record):
    """A score under the base model and after training; a score that compares the two is in `after` alone."""

    before: Estimate | None = None
    after: Estimate | None = None


@dataclass(frozen=True, slots=True, config=STRICT)
class ScoreRecord(Record):
    """One of `SCORES`, of the kept and of the dropped facts.

    Attributes:
        name: Name of the score.
        kept: Over the kept facts.
        dropped: Over the facts that a filter dropped.
    """

    name: str
    kept: Sides = Sides()
    dropped: Sides = Sides()


@dataclass(frozen=True, slots=True, config=STRICT)
class RetentionRecord(Record):
    """What happened to text and facts outside of the training.

    Attributes:
        nll_before: Mean negative log-likelihood of unrelated text, base model, nats per token, over all tokens.
        nll_after: The same after training.
        nll_delta: After minus before by text, positive is harm; `num_facts` is the number of texts. Its mean is over
            texts, so it may differ from `nll_after` − `nll_before`.
        known: Share of the facts without a part in training that the base model answers right and that the trained
            model still does.
    """

    nll_before: Measured = None
    nll_after: Measured = None
    nll_delta: Estimate | None = None
    known: Estimate | None = None

    def of(self, name: str) -> Estimate | None:
        """A score of `evaluation.RETENTION` by name."""
        estimate: Estimate | None = getattr(self, name.removeprefix("retention_"))
        return estimate


@dataclass(frozen=True, slots=True, config=STRICT)
class GateRecord(Record):
    """The same adapter through its gate, where it acts on questions that name what was taught.

    Attributes:
        match: What opens it: `subjects` or `subjects_and_targets`.
        num_names: Names that open it.
        num_opened: Questions that opened it, by kind.
        num_asked: All questions, by kind.
        scores: Every score that was measured, of the gated model.
        retention: What happened to text and facts outside of the training.
    """

    match: str
    num_names: int
    num_opened: dict[str, int]
    num_asked: dict[str, int]
    scores: tuple[ScoreRecord, ...] = ()
    retention: RetentionRecord | None = None

    def score(self, name: str) -> ScoreRecord:
        """A score by name; one without numbers where it was not measured."""
        return next((one for one in self.scores if one.name == name), ScoreRecord(name))


@dataclass(frozen=True, slots=True, config=STRICT)
class ExpertRecord(Record):
    """An expert beside one layer.

    Attributes:
        layer: Name of the layer.
        expert: Number of the expert, from 0.
        load: Its share of the choices of all tokens of the kept facts, [0, 1].
        num_anchors: Subjects whose tokens choose it most often in this layer.
        anchors: Some of them, those with the largest share first.
    """

    layer: str
    expert: int
    load: float
    num_anchors: int
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, config=STRICT)
class PairsRecord(Record):
    """Interference between the pairs of facts that have a part of their experts in common.

    Attributes:
        num_pairs: Pairs with a defined gradient cosine.
        gradient_cosine: Its mean, [−1, 1]; below 0 they work against each other.
        conflict_rate: Share of the pairs below −0.05.
    """

    num_pairs: int
    gradient_cosine: Measured = None
    conflict_rate: Measured = None


@dataclass(frozen=True, slots=True, config=STRICT)
class RoutingRecord(Record):
    """What opens an adapter that acts by names, and where its experts, if it has any, send what, after training.

    Attributes:
        match: What opens it: `subjects` or `subjects_and_targets`.
        num_names: Names that open it.
        num_opened: Questions whose prompt has a name, by kind; on all others the model is the base model.
        num_asked: All questions, by kind.
        effective_experts: exp of the entropy of the load, mean over layers, [1, E]: E where all are equally busy; None
            without experts.
        experts: Every expert of every layer.
        same_experts: Pairs of facts that choose most often the same expert in at least half of the layers.
        other_experts: All other pairs.
    """

    match: str
    num_names: int
    num_opened: dict[str, int]
    num_asked: dict[str, int]
    effective_experts: float | None
    experts: tuple[ExpertRecord, ...] = ()
    same_experts: PairsRecord | None = None
    other_experts: PairsRecord | None = None


@dataclass(frozen=True, slots=True, config=STRICT)
class EpochRecord(Record):
    """The state at the end of a training epoch.

    Attributes:
        epoch: Number of the epoch, counted from 0.
        global_step: Optimizer steps taken by its end.
        loss: Mean training loss of the epoch, weighted as in training, nats per token.
        val_nll: Mean negative log-likelihood of the kept facts at its end, nats per token.
        efficacy_teacher_forced: Share of the kept facts whose target tokens all win under the true prefix at its end.
        stopping_efficacy_teacher_forced: The same in the forms that are asked during training.
    """

    epoch: int
    global_step: int | None = None
    loss: Measured = None
    val_nll: Measured = None
    efficacy_teacher_forced: Measured = None
    stopping_efficacy_teacher_forced: Measured = None


@dataclass(frozen=True, slots=True, config=STRICT)
class FormsRecord(Record):
    """In which forms the kept facts were taught beside their own prompts, and asked during training.

    Attributes:
        taught: Kept facts with taught forms of each source. What is taught is never asked at the end.
        num_with_stopping: Kept facts with a form that is asked during training.
        num_without_stopping: Kept facts with too few forms for that, whose own prompt was asked instead.
    """

    taught: dict[str, int]
    num_with_stopping: int
    num_without_stopping: int

    @property
    def stopping_text(self) -> str:
        """One line about what was asked during training."""
        return f"a form of their own: {self.num_with_stopping} facts; their taught prompt: {self.num_without_stopping}"


@dataclass(frozen=True, slots=True, config=STRICT)
class InterferenceRecord(Record):
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
    conflict_rate: Measured = None
    net_transfer_median: Measured = None
    share_net_transfer_below_minus_1: Measured = None
    share_net_transfer_below_0: Measured = None


@dataclass(frozen=True, slots=True, config=STRICT)
class Seconds(Record):
    """Wall-clock seconds by part of the run, those of an interrupted run with it up to its last checkpoint.

    They add up to the elapsed time, without the start of the program and the last report.

    Attributes:
        setup: Reading facts, filtering, loading the base model.
        scoring: Running the base model for distances and strata; near 0 where scores come from the cache.
        training: The epochs, and the interference measured during and after them.
        evaluation: Asking the trained model, and writing the results.
    """

    setup: float | None = None
    scoring: float | None = None
    training: float | None = None
    evaluation: float | None = None

    @property
    def measured(self) -> Mapping[str, float]:
        """The parts that were measured, by name."""
        return {part: value for part, value in self.to_json().items() if value is not None}

    @property
    def total(self) -> float | None:
        """The sum of what was measured; None where nothing was."""
        return sum(self.measured.values()) if self.measured else None


@dataclass(frozen=True, slots=True, config=STRICT)
class Repetition(Record):
    """What the trained model answers most often to the kept facts' own prompts.

    Attributes:
        num_answers: Facts that were answered.
        num_right: Of these, those answered right.
        answer: The most frequent answer.
        num_given: Facts that it is given to.
        num_given_right: Of these, those for which it is right.
        num_targets: Facts whose target it is: as many would be right if it were always given.
        word: The most frequent word of the answers.
        word_share: Share of the answers that hold it.
        word_share_of_targets: Share of the targets that hold it.
    """

    num_answers: int
    num_right: int
    answer: str
    num_given: int
    num_given_right: int
    num_targets: int
    word: str
    word_share: float
    word_share_of_targets: float


@dataclass(frozen=True, slots=True, config=STRICT)
class FactCounts(Record):
    """What follows from the fact table alone, over the facts that were there to be trained (split `inject`).

    Attributes:
        num_facts: Facts that were offered to the filters.
        num_kept: Facts that were trained.
        num_dropped: Facts that a filter dropped.
        dropped_by_reason: Number of dropped facts by reason, the most frequent first.
        pushed_away: Share of the kept facts whose distance grew.
        num_neighbors: Different neighbours of the kept facts that were asked, behind the score `locality`.
        begins_right: Share of the kept facts whose answer begins with the target or an alias, whatever follows.
        repetition: What the trained model answers most often.
        num_resisting: Kept facts that are not recalled or were pushed away; None where neither was measured.
        resisting: The worst of them, each with what goes with it.
        num_wordings: Wordings of a relation, other than its own prompt, in which several kept facts were asked; None
            where no such questions were asked.
        weak_wordings: Those in which fewer than half of the facts are recalled, the worst first.
        num_retain: Facts of split `retain`, which must not change.
        scores: Every score that was measured, in the order of `SCORES`.
    """

    num_facts: int
    num_kept: int
    num_dropped: int
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    pushed_away: Measured = None
    num_neighbors: int | None = None
    begins_right: Sides = Sides()
    repetition: Repetition | None = None
    num_resisting: int | None = None
    resisting: tuple[ResistingFact, ...] = ()
    num_wordings: int | None = None
    weak_wordings: tuple[WeakWording, ...] = ()
    num_retain: int | None = None
    scores: tuple[ScoreRecord, ...] = ()

    def score(self, name: str) -> ScoreRecord:
        """A score by name; one without numbers where it was not measured."""
        return next((one for one in self.scores if one.name == name), ScoreRecord(name))


@dataclass(frozen=True, slots=True, config=STRICT)
class Summary(FactCounts):
    """The numbers of a run. Everything but the three counts is optional; None is "not measured".

    Attributes:
        name: Name of the run.
        created: When it ended, ISO 8601 with time zone.
        command: The command line.
        base_model: Name by which a user can load the base model.
        base_model_note: What else must be known about it (dequantised weights, for example).
        peft_type: Kind of adapter, as `peft` names it.
        trainable_parameters: Number of trained parameters.
        scale: By what `ScaleBack` or `Extrapolate` multiplied the trained adapter; None where neither was there.
        distance_name: Class name of the configured distance.
        epochs: One record per epoch.
        interference: One record per measurement of the gradient matrix, in order.
        retention: What happened to unrelated text and to known facts.
        gate: The same through the gate; None where there is none.
        routing: Where the adapter sends what; None where it has no experts.
        forms: In which forms facts were taught; None where each was taught by its own prompt only.
        seconds: Seconds of each part.
        peak_memory_gb: Peak resident memory of the process, 10⁹ bytes.
        versions: Package versions by name.
        config: The configuration as plain types.
        verdict: What the run cost or did not reach, in sentences, by the thresholds of `reports.verdict`; empty where
            nothing is beyond them, None where nothing was judged.
    """

    name: str | None = None
    created: str | None = None
    command: str | None = None
    base_model: str | None = None
    base_model_note: str | None = None
    peft_type: str | None = None
    trainable_parameters: int | None = None
    scale: float | None = None
    distance_name: str | None = None
    epochs: tuple[EpochRecord, ...] = ()
    interference: tuple[InterferenceRecord, ...] = ()
    retention: RetentionRecord | None = None
    gate: GateRecord | None = None
    routing: RoutingRecord | None = None
    forms: FormsRecord | None = None
    seconds: Seconds | None = None
    peak_memory_gb: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    verdict: tuple[str, ...] | None = None

    @property
    def as_used(self) -> "Summary":
        """The same with the numbers through the gate, where there is one: of the model as `load_gated` loads it."""
        gate = self.gate
        return self if gate is None else replace(self, scores=gate.scores, retention=gate.retention)

    def without_fact_text(self) -> "Summary":
        """The same without texts of facts: those that resist, wordings, the most frequent answer, names of anchors."""
        routing = self.routing
        if routing is not None:
            routing = replace(routing, experts=tuple(replace(one, anchors=()) for one in routing.experts))
        return replace(self, resisting=(), weak_wordings=(), repetition=None, routing=routing)


@dataclass(frozen=True, slots=True, config=STRICT)
class Manifest(Record):
    """The facts and the base model that a run's results belong to.

    Attributes:
        facts_key: Content key of the facts.
        base_model: Name by which a user can load the base model.
        base_fingerprint: Fingerprint of its weights.
        num_facts: Facts that were read.
        num_kept: Facts that the filters kept.
    """

    facts_key: str
    base_model: str
    base_fingerprint: str
    num_facts: int
    num_kept: int
