"""What a report says of single facts and of single wordings, as the records of its JSON files."""

from pydantic.dataclasses import dataclass

from lit_semantic_peft.reports.record_base import STRICT, Record


@dataclass(frozen=True, slots=True, config=STRICT)
class ResistingFact(Record):
    """A kept fact that training did not teach.

    Attributes:
        fact_id: The fact.
        prompt: Its prompt.
        target: What it was taught.
        answer: What the trained model answers; None where it was not asked.
        is_recalled: Whether it answers with the target; by the last validation where it was not asked.
        is_pushed_away: Whether the fact is farther from the model than before training.
        reasons: What goes with it in this run, the likeliest first; empty where nothing was found.
    """

    fact_id: str
    prompt: str
    target: str
    answer: str | None = None
    is_recalled: bool | None = None
    is_pushed_away: bool | None = None
    reasons: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """What became of it, in a few words."""
        said = [] if self.is_recalled is not False else ["not recalled"]
        return " and ".join([*said, *(["pushed away"] if self.is_pushed_away else [])])

    @property
    def reason(self) -> str:
        """The reasons as a sentence without its full stop."""
        return "; ".join(self.reasons) or "no trait sets it apart"


@dataclass(frozen=True, slots=True, config=STRICT)
class WeakWording(Record):
    """A wording in which facts of a relation are asked and mostly not recalled.

    Attributes:
        kind: Kind of the question, as in the probe table.
        relation: Of the facts; "" is no relation.
        wording: The question with … for the subject, of a reversed one for the target.
        num_facts: Kept facts that were asked so.
        num_recalled: How many of them the trained model answers rightly.
        num_as_before: How many it does not, and answers as the base model does.
        answer: The most frequent wrong answer; None where it was never asked to answer.
        num_given: How many facts it is given to.
    """

    kind: str
    relation: str
    wording: str
    num_facts: int
    num_recalled: int
    num_as_before: int
    answer: str | None = None
    num_given: int = 0

    @property
    def share_recalled(self) -> float:
        """Of the facts that were asked so, in [0, 1]."""
        return self.num_recalled / self.num_facts

    @property
    def about(self) -> str:
        """What the answers have in common, in a few words; empty where it is nothing."""
        said = [f"{self.num_as_before} answered as before training"] if self.num_as_before else []
        if self.num_given > 1:
            said.append(f"{self.num_given} answered “{self.answer}”")
        return "; ".join(said)
