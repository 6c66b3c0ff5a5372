"""What `score` finds about facts before any training, as the records of its JSON files."""

from dataclasses import dataclass as plain_dataclass
from dataclasses import field

from pydantic.dataclasses import dataclass

from lit_semantic_peft.reports.record_base import STRICT, Measured, Record


@dataclass(frozen=True, slots=True, config=STRICT)
class FilterRecord(Record):
    """What one of the configured filters would drop.

    Attributes:
        name: Class name of the filter.
        num_given: Facts that the filters before it left.
        dropped: Facts that it would drop, by reason, the most frequent reason first.
    """

    name: str
    num_given: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def num_dropped(self) -> int:
        """Facts that it would drop."""
        return sum(self.dropped.values())


@dataclass(frozen=True, slots=True, config=STRICT)
class ContradictionRecord(Record):
    """The same prompt with two targets that exclude each other.

    Attributes:
        prompt: The prompt.
        targets: The target of the earlier fact, then that of the later one.
        fact_ids: Both facts; twice the same one where its own forms contradict each other.
        locations: File and line of each, as far as they are known.
    """

    prompt: str
    targets: tuple[str, str]
    fact_ids: tuple[str, str]
    locations: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True, config=STRICT)
class DuplicatesRecord(Record):
    """Facts with nearly the same words, which one template usually made.

    Attributes:
        template: The words that they share, with `…` for the others.
        fact_ids: The facts, at least two.
    """

    template: str
    fact_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, config=STRICT)
class DoubtfulRecord(Record):
    """A fact that contradicts what the base model knows with confidence.

    Attributes:
        fact_id: The fact.
        prompt: Its prompt.
        target: What would be taught.
        answer: The first word of the base model's greedy answer.
        probability: Of that word under the base model, in [0.5, 1].
        target_probability: Of the whole target under the base model.
        location: File and line of the fact.
    """

    fact_id: str
    prompt: str
    target: str
    answer: str
    probability: float
    target_probability: float
    location: str = ""


@dataclass(frozen=True, slots=True, config=STRICT)
class Doubtful(Record):
    """What `doubtful.json` holds.

    Attributes:
        facts: The facts, those first of which the base model is surest.
    """

    facts: tuple[DoubtfulRecord, ...] = ()


@dataclass(frozen=True, slots=True, config=STRICT)
class Findings(Record):
    """What `findings.json` holds.

    Attributes:
        num_known: Facts of split `inject` that the base model gives already, by the judge of `KnownFilter`.
        filters: What each configured filter would drop, in their order.
        contradictions: Facts with the same prompt and different targets.
        near_duplicates: Facts that nearly repeat each other, the largest group first.
        without_templates: Facts of each relation that has no templates of forms; "" is no relation.
        conflict_steps: Optimizer steps of the warm-up after which conflicts were measured; None where they were not.
    """

    num_known: int
    filters: tuple[FilterRecord, ...] = ()
    contradictions: tuple[ContradictionRecord, ...] = ()
    near_duplicates: tuple[DuplicatesRecord, ...] = ()
    without_templates: dict[str, int] = field(default_factory=dict)
    conflict_steps: int | None = None


@dataclass(frozen=True, slots=True, config=STRICT)
class PredictionRecord(Record):
    """How well a distance separates what a run learned from what it did not, as `statistics.Discrimination`.

    Attributes:
        auroc: Area under the ROC curve; 0.5 is no information.
        low: Lower bound of its 95 % bootstrap interval over facts.
        high: Upper bound.
        num_learned: Facts that were learned.
        num_not_learned: Facts that were not.
    """

    auroc: float
    low: float
    high: float
    num_learned: int
    num_not_learned: int


@dataclass(frozen=True, slots=True, config=STRICT)
class Distances(Record):
    """What `distances.json` holds.

    Attributes:
        distances: Names of the distances.
        rank_correlation: Spearman's ρ of each pair; None where a distance is constant.
        predicts_learned: By outcome and distance, how well the distance predicts it; None without a finished run.
    """

    distances: tuple[str, ...]
    rank_correlation: tuple[tuple[Measured, ...], ...] = ()
    predicts_learned: dict[str, dict[str, PredictionRecord]] | None = None


@plain_dataclass(frozen=True)
class ScoreContents:
    """What a folder of `score` holds beside the fact table and the summary.

    Attributes:
        findings: What was found about the facts as a set.
        doubtful: The facts that contradict what the base model knows with confidence, the surest first.
        distances: How the distances agree, and what predicts what a run learned.
    """

    findings: Findings
    doubtful: tuple[DoubtfulRecord, ...]
    distances: Distances
