"""What a fact is: the data contract that every reader produces and every later stage relies on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import content_key

Split = Literal["inject", "retain", "probe"]
"""`inject`: trained. `retain`: must not change. `probe`: only measured."""

SPLITS: tuple[Split, ...] = get_args(Split)

YES_NO = ("yes", "no")
"""The answers of a question of `Fact.yes_no`, in lower case."""

_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Form:
    """Another way to state a fact, which may be trained: in other words, as a question, the other way round.

    Attributes:
        prompt: Ends where the target begins, without trailing space.
        target: What follows; the fact's own target, or another part of it.
        joiner: Text between the two.
    """

    prompt: str
    target: str
    joiner: str = " "


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt and its expected answer. It is asked in evaluation and not trained, unless it is `trainable`.

    Attributes:
        prompt: Ends where the target begins, without trailing space.
        target: The expected answer.
        hops: Number of facts that must be combined to answer; 1 for a direct question.
        needs: Ids of the other facts of the set that the answer also depends on. The answer can only be expected if
            those were learned too, and only then does it count as portability.
        trainable: Whether a conclusion may be trained, which `InContext` forms do; it is then not asked.
    """

    prompt: str
    target: str
    hops: int = 1
    needs: tuple[str, ...] = ()
    trainable: bool = False


def _missing_text() -> str:
    raise InputError(
        "`Fact`: expected `prompt` and `target`, as in `Fact(prompt='The capital of France is', target='Paris')`"
    )


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement to learn. Only `prompt` and `target` are required; a missing `id` becomes a content hash.

    A fact that is made by hand is checked, and its texts are stripped as those of a file, where it is used.

    Attributes:
        id: Stable string, unique in a set; called `fact_id` in every table. A content hash where it is empty.
        prompt: Text before the answer; ends where the target begins, without trailing space.
        target: The answer to learn.
        subject: What the fact is about.
        relation: Kind of fact; groups facts in reports.
        aliases: Other accepted answers.
        joiner: Text between prompt and target: a space, or nothing (Chinese, punctuation).
        target_true: The answer that the base model may give, if known.
        paraphrases: Other prompts with the same answer, to be asked.
        forms: Other prompts, each with what follows, to be trained where `data.forms` says so.
        neighborhood: Near prompts whose answers must not change.
        portability: Questions whose answers follow from the fact.
        yes_no: Questions about the fact to be answered by `Yes` or `No`.
        question: The prompt as a question, where the source gives one.
        split: `inject` (trained), `retain` (must not change) or `probe` (only measured).
        source: Where the fact comes from.
        location: File and line that the fact was read from, for messages; not part of the content.
    """

    id: str = ""
    prompt: str = field(default_factory=_missing_text)
    target: str = field(default_factory=_missing_text)
    subject: str = ""
    relation: str = ""
    aliases: tuple[str, ...] = ()
    joiner: str = " "
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    neighborhood: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    yes_no: tuple[Probe, ...] = ()
    question: str | None = None
    split: Split = "inject"
    source: str = ""
    location: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.content_id)

    @property
    def content_id(self) -> str:
        """The id that a fact has which is given none."""
        return content_id(str(self.prompt).rstrip(), str(self.target).strip(), str(self.joiner))

    @property
    def accepted_answers(self) -> tuple[str, ...]:
        """The target and its aliases."""
        return (self.target, *self.aliases)

    def to_json(self) -> dict[str, Any]:
        """The fact as the object of a JSONL line: plain types, without `location`, empty fields left out."""
        row: dict[str, Any] = {
            "id": self.id,
            "subject": self.subject,
            "relation": self.relation,
            "prompt": self.prompt,
            "target": self.target,
            "aliases": list(self.aliases),
            "joiner": self.joiner,
            "target_true": self.target_true,
            "paraphrases": list(self.paraphrases),
            "forms": [
                {"prompt": form.prompt, "target": form.target}
                | ({"joiner": form.joiner} if form.joiner != self.joiner else {})
                for form in self.forms
            ],
            "neighborhood": [{"prompt": p.prompt, "target": p.target} for p in self.neighborhood],
            "portability": [
                {"prompt": p.prompt, "target": p.target, "hops": p.hops}
                | ({"needs": list(p.needs)} if p.needs else {})
                | ({"trainable": True} if p.trainable else {})
                for p in self.portability
            ],
            "yes_no": [{"prompt": p.prompt, "target": p.target} for p in self.yes_no],
            "question": self.question,
            "split": self.split,
            "source": self.source,
        }
        defaults: dict[str, Any] = {"joiner": " ", "split": "inject"}
        # An empty joiner is a value, not a missing field: Chinese needs it.
        return {
            key: value
            for key, value in row.items()
            if value != defaults.get(key, "") and (key == "joiner" or value not in ("", None, []))
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any], location: str = "") -> "Fact":
        """The inverse of `to_json`, for rows that this package wrote; foreign rows go through `read_facts`.

        Args:
            row: What `to_json` returned.
            location: File and line, for messages.

        Returns:
            The fact, equal to the one that was written.

        Example:
            >>> fact = Fact("a", "Ivory comes from", "elephants", neighborhood=(Probe("Wool comes from", "sheep"),))
            >>> Fact.from_json(fact.to_json()) == fact
            True
        """
        fields: dict[str, Any] = dict(row)
        for name in ("aliases", "paraphrases"):
            fields[name] = tuple(row.get(name, ()))
        fields["forms"] = tuple(Form(**{"joiner": row.get("joiner", " "), **form}) for form in row.get("forms", ()))
        for name in ("neighborhood", "portability", "yes_no"):
            fields[name] = tuple(
                Probe(**{**probe, "needs": tuple(probe.get("needs", ()))}) for probe in row.get(name, ())
            )
        return cls(**fields, location=location)


@dataclass(frozen=True, slots=True)
class Omission:
    """Something that a reader of a published format left out, and why.

    Attributes:
        part: `record` for whole records, else the name of the field that was left out.
        reason: Why.
        count: In how many records.
        first: Location of the first of them.
    """

    part: str
    reason: str
    count: int
    first: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a published format was read.

    Attributes:
        format: Its title, such as `CounterFact`.
        num_records: Records that were read.
        num_merged: Facts that repeat an earlier one. Their probes were added to it.
        omissions: What was left out; empty if nothing was.
    """

    format: str
    num_records: int
    num_merged: int = 0
    omissions: tuple[Omission, ...] = ()

    def __str__(self) -> str:
        """One line for a log: `CounterFact, 3 records; left out: record (1: the answer is empty)`."""
        merged = f", {self.num_merged} facts repeat an earlier one" if self.num_merged else ""
        left_out = ", ".join(f"{one.part} ({one.count}: {one.reason})" for one in self.omissions)
        return f"{self.format}, {self.num_records} records{merged}" + (f"; left out: {left_out}" if left_out else "")


@dataclass(frozen=True, slots=True)
class FactSet:
    """Facts that were read together, with the reader's warnings.

    Attributes:
        facts: The facts, in the order of the file; every id occurs once.
        warnings: Messages about what was repaired or ignored; empty if nothing was.
        name: Short name of the set: of the built-in set, of the file without its suffix, or of the Hub set.
        conversion: How a published format was read; None if the facts were in the contract already.
    """

    facts: tuple[Fact, ...]
    warnings: tuple[str, ...] = ()
    name: str = ""
    conversion: Conversion | None = None
    _is_checked: bool = field(default=False, init=False, repr=False, compare=False)

    @classmethod
    def checked(
        cls,
        facts: Iterable[Fact],
        warnings: tuple[str, ...] = (),
        name: str = "",
        conversion: Conversion | None = None,
    ) -> "FactSet":
        """A set of facts that the reader has checked, so that it does not check them again.

        Args:
            facts: From `read_facts`.
            warnings: As above.
            name: As above.
            conversion: As above.
        """
        made = cls(tuple(facts), warnings, name, conversion)
        object.__setattr__(made, "_is_checked", True)
        return made

    @property
    def is_checked(self) -> bool:
        """Whether the reader has checked these facts; false of a set that was made by hand or by `replace`."""
        return self._is_checked

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)

    def __getitem__(self, index: int) -> Fact:
        return self.facts[index]

    def __repr__(self) -> str:
        return f"FactSet({self.name!r}: {len(self.facts)} facts, {len(self.warnings)} warnings)"


def apart(probes: Iterable[Probe]) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """Separates conclusions from questions to be answered by yes or no, which a model that always says one gets right.

    A question that combines several facts (`needs`) or is `trainable` stays a conclusion.

    Args:
        probes: Probes whose answers follow from a fact.

    Returns:
        The conclusions, and the yes/no questions.
    """
    probes = tuple(probes)
    is_asked = [
        not probe.needs and not probe.trainable and probe.target.strip(" .!").lower() in YES_NO for probe in probes
    ]
    conclusions = tuple(probe for probe, flag in zip(probes, is_asked, strict=True) if not flag)
    return conclusions, tuple(probe for probe, flag in zip(probes, is_asked, strict=True) if flag)


def content_id(prompt: str, target: str, joiner: str = " ") -> str:
    """The id of a fact that has none of its own: 16 hexadecimal digits, a hash of prompt, target and joiner."""
    return content_key(prompt, target, joiner)[:_ID_DIGITS]


def facts_key(facts: Sequence[Fact]) -> str:
    """Content key of a set of facts, in order: equal exactly when every field of every fact is equal."""
    return content_key([fact.to_json() for fact in facts])
