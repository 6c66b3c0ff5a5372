"""Shared by the readers of published formats: access to a record's fields, and building a fact."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_semantic_peft.facts.checks import normalize_text
from lit_semantic_peft.facts.reading import described, shown, unencodable
from lit_semantic_peft.facts.schema import Fact, Probe, apart, content_id
from lit_semantic_peft.facts.text import is_visible, parsed_texts

_INDEX = re.compile(r"\[\d+\]")


class FieldError(Exception):
    """A field of a record whose value does not fit the format.

    Attributes:
        name: The field, with its path: `requested_rewrite.target_new.str`.
        expected: What it should hold.
        got: What it holds.
    """

    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(f"field `{name}`: expected {expected}, got {got}")
        self.name, self.expected, self.got = name, expected, got


@dataclass(frozen=True, slots=True)
class Dropped:
    """A part of a record that does not become part of a fact.

    Attributes:
        reason: Why, as the end of a sentence: "the answer is empty".
        part: The field; `record` for the whole record.
    """

    reason: str
    part: str = "record"


@dataclass(frozen=True, slots=True)
class Noted:
    """Something about a record that its reader decided and the user should know.

    Attributes:
        sentence: What, without a full stop.
    """

    sentence: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a published format, or an object in one.

    Text that is missing or of the wrong type raises `FieldError`; null and NaN count as missing. In the cells of text
    tables objects and lists of texts are JSON; any other text is text, whatever it begins with.

    Attributes:
        fields: The fields.
        file: Name of the file, which may carry information: EntityQuestions and ParaRel name files by relation.
        templates: Templates by relation, for formats that ship them in a file of their own.
        path: Path of the object in its record; "" for the record itself.
        cells: Whether the values are cells of a text table.
        looked_at: Paths of the fields that were looked at, shared by all objects of the record.
        opened: All objects of the record, the record itself first.
    """

    fields: Mapping[str, Any]
    file: str = ""
    templates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    path: str = ""
    cells: bool = False
    looked_at: set[str] = field(default_factory=set, repr=False)
    opened: list["Record"] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.opened.append(self)

    def has(self, name: str) -> bool:
        """Whether the field holds anything: not null, NaN, an empty text or an empty list."""
        self.looked_at.add(self.path + name)
        return _holds(self.fields.get(name))

    def unread(self) -> list[str]:
        """The fields with a value that nobody looked at, in the objects that were opened too, with their paths."""
        names = (
            _INDEX.sub("", f"{one.path}{name}")
            for one in self.opened
            for name, value in one.fields.items()
            if one.path + name not in self.looked_at and _holds(value)
        )
        return list(dict.fromkeys(names))

    def text(self, name: str) -> str:
        """The text of a field that must be there, stripped; a whole number is text as well."""
        self.looked_at.add(self.path + name)
        if name not in self.fields or self.fields[name] is None:
            there = ", ".join(f"`{other}`" for other in self.fields) or "nothing"
            raise FieldError(self.path + name, "text", f"nothing; this record has {there}")
        return _text(self.path + name, self.fields[name]).strip()

    def optional_text(self, name: str) -> str:
        """The text of a field, stripped; "" where it is missing."""
        return self.text(name) if self.has(name) else ""

    def texts(self, name: str) -> list[str]:
        """The texts of a field that holds one or a list of them, without empty ones; [] where it is missing."""
        if not self.has(name):
            return []
        value = self._parsed(name)
        items = value if isinstance(value, list | tuple) else [value]
        texts = [_text(f"{self.path}{name}[{index}]", item).strip() for index, item in enumerate(items)]
        return [text for text in texts if text]

    def answers(self, name: str) -> list[str]:
        """The texts of a field that holds accepted answers, however deeply their lists are nested."""
        if not self.has(name):
            return []
        return _distinct(_flattened(self.path + name, self._parsed(name)))

    def encoded_answers(self, name: str) -> list[str]:
        """As `answers`, of a field that holds a list as JSON text, as its publisher ships it, or a list."""
        value = self.fields[name] if self.has(name) else []
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = self._json(name, "a list of answers")
        return _distinct(_flattened(self.path + name, value))

    def record(self, name: str) -> "Record":
        """The object in a field that must be there."""
        value = self.fields.get(name)
        return self._inner(name, self._json(name, "an object") if self.has(name) and self.cells else value)

    def records(self, name: str) -> list["Record"]:
        """The objects of a field that holds a list of them; [] where it is missing."""
        if not self.has(name):
            return []
        value = self._json(name, "a list of objects") if self.cells else self.fields[name]
        if not isinstance(value, list | tuple):
            raise FieldError(self.path + name, "a list of objects", described(value))
        return [self._inner(f"{name}[{index}]", item) for index, item in enumerate(value)]

    def _inner(self, name: str, value: Any) -> "Record":
        if not isinstance(value, Mapping):
            raise FieldError(self.path + name, "an object", described(value))
        path = f"{self.path}{name}."
        return Record(value, self.file, self.templates, path, looked_at=self.looked_at, opened=self.opened)

    def _parsed(self, name: str) -> Any:
        """The value, of a cell that holds a list of texts as JSON the list."""
        value = self.fields[name]
        return parsed_texts(value) if self.cells and isinstance(value, str) else value

    def _json(self, name: str, expected: str) -> Any:
        """The value, of text that must be JSON what it stands for."""
        value = self.fields[name]
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise FieldError(self.path + name, f"{expected} as JSON", shown(value)) from None


def _holds(value: Any) -> bool:
    return value == value and value not in (None, "", [], {})  # NaN is not equal to itself


def _distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(text.strip() for text in texts) if text]


Outcome = Fact | Dropped | Noted
"""What a format reads from a record: facts, omissions, and what was decided."""


NO_PLACE = "a fact has no field for it"


@dataclass(frozen=True, slots=True)
class Format:
    """A published format.

    Attributes:
        name: What `--format` calls it.
        title: What messages and `source` call it.
        recognised_by: Sets of fields; records that have all fields of any of them are of this format.
        read: Turns one record into facts and omissions; raises `FieldError` for a malformed one.
        left_out: Why fields that do not fit into the contract are left out, where there is more to say than `NO_PLACE`.
    """

    name: str
    title: str
    recognised_by: tuple[frozenset[str], ...]
    read: Callable[[Record], Iterable[Outcome]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def outcomes(self, record: Record) -> list[Outcome]:
        """The facts of a record and everything that is left out of them.

        Raises:
            FieldError: If a field is missing or of the wrong type.
        """
        found = list(self.read(record))
        if not any(isinstance(outcome, Fact) for outcome in found):
            return found
        unread = (Dropped(self.left_out.get(name, NO_PLACE), name) for name in record.unread())
        return [*found, *unread]


def fields(*names: str) -> frozenset[str]:
    """A set of fields that identifies a format."""
    return frozenset(names)


def build_fact(
    title: str,
    prompt: str,
    target: str,
    *,
    fact_id: str = "",
    subject: str = "",
    relation: str = "",
    aliases: Iterable[str] = (),
    joiner: str = " ",
    target_true: str = "",
    paraphrases: Iterable[str] = (),
    neighborhood: Iterable[Probe] = (),
    portability: Iterable[Probe] = (),
    yes_no: Iterable[Probe] = (),
    question: str = "",
) -> Iterator[Outcome]:
    """Builds a fact and leaves out probes that cannot be asked.

    Args:
        title: The format's title, for `source`.
        prompt: Text before the answer.
        target: The answer to teach.
        fact_id: The fact's id; "" names it by its content.
        subject: As in `Fact`.
        relation: As in `Fact`.
        aliases: As in `Fact`; the target itself is no alias.
        joiner: As in `Fact`.
        target_true: As in `Fact`; "" where unknown.
        paraphrases: As in `Fact`; the prompt itself is no paraphrase.
        neighborhood: As in `Fact`.
        portability: As in `Fact`; those to be answered by yes or no are `yes_no`.
        yes_no: As in `Fact`.
        question: As in `Fact`; "" where there is none.

    Yields:
        What is left out, and the fact unless the whole record is left out.
    """
    prompt, target = prompt.rstrip(), target.strip()
    for name, text in (("prompt", prompt), ("answer", target)):
        if not is_visible(text):
            yield Dropped(f"the {name} holds only invisible characters" if text else f"the {name} is empty")
            return
    conclusions, asked = apart(portability)
    kept: dict[str, list[Probe]] = {}
    for name, probes in (("neighborhood", neighborhood), ("portability", conclusions), ("yes_no", (*asked, *yes_no))):
        kept[name] = []
        for probe in dict.fromkeys(probes):
            if not is_visible(probe.prompt) or not is_visible(probe.target):
                yield Dropped("a probe without a question or an answer", name)
            elif name == "neighborhood" and normalize_text(probe.prompt) == normalize_text(prompt):
                yield Dropped("a neighbour that asks the taught prompt itself", name)
            else:
                kept[name].append(probe)
    yield Fact(
        id=fact_id or content_id(prompt, target, joiner),
        prompt=prompt,
        target=target,
        subject=subject,
        relation=relation,
        aliases=_others(aliases, target),
        joiner=joiner,
        target_true=target_true or None,
        paraphrases=_others(paraphrases, prompt),
        neighborhood=tuple(kept["neighborhood"]),
        portability=tuple(kept["portability"]),
        yes_no=tuple(kept["yes_no"]),
        question=question or None,
        source=title,
    )


def other_answers(name: str, answers: Iterable[Sequence[str]]) -> Iterator[Dropped]:
    """Reports questions with more than one accepted answer: the contract has room for the first only.

    Args:
        name: The field of the contract that the questions go to.
        answers: The accepted answers of each question.

    Yields:
        At most one omission.
    """
    if any(len(accepted) > 1 for accepted in answers):
        yield Dropped("all but the first accepted answer: there is room for one", name)


def as_prompt(text: str) -> str:
    """The prompt that asks for an answer: a question is put between `Question:` and `Answer:`, a cloze stays.

    A language model continues text. After a bare question it may continue with more questions; after `Answer:` it
    answers.

    Args:
        text: A question, which ends with a question mark, or text that the answer completes.

    Returns:
        The prompt, without trailing space.

    Example:
        >>> as_prompt("Who wrote Ulysses?"), as_prompt("Ulysses was written by")
        ('Question: Who wrote Ulysses? Answer:', 'Ulysses was written by')
    """
    return question_prompt(text) if is_question(text) else text.rstrip()


def question_prompt(text: str) -> str:
    """As `as_prompt`, for text that asks even without a question mark; the text itself stays as it is.

    Example:
        >>> question_prompt("Name the town.")
        'Question: Name the town. Answer:'
    """
    return f"Question: {text.strip()} Answer:"


def is_question(text: str) -> bool:
    """Whether a text ends with a question mark (of Latin, Chinese or Arabic script), perhaps inside quotation marks."""
    return text.rstrip(" \t\r\n\"'\u201d\u2019\u00bb)").endswith(("?", "\uff1f", "\u061f"))


def template_of(text: str, subject: str) -> str:
    """The text with `{}` in place of the subject: a name for its relation, where the source gives none.

    Example:
        >>> template_of("What is the product made by UniFirst?", "UniFirst")
        'What is the product made by {}?'
    """
    return text.replace(subject, "{}") if subject and subject in text else ""


def relation_of_file(file: str) -> str:
    """The Wikidata property that a file is named by, else "".

    Example:
        >>> relation_of_file("dataset/dev/P112.dev.json"), relation_of_file("facts.json")
        ('P112', '')
    """
    found = re.fullmatch(r"(P\d+)(?:[._-].*)?", re.split(r"[/\\]", file)[-1])
    return found[1] if found else ""


def _others(texts: Iterable[str], known: str) -> tuple[str, ...]:
    return tuple(text for text in dict.fromkeys(texts) if text.strip() and text != known)


def _text(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # published files write some years and numbers without quotation marks
    if not isinstance(value, str):
        raise FieldError(name, "text", described(value))
    wrong = unencodable(value)
    if wrong:
        raise FieldError(name, "text", wrong)
    return value


def _flattened(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flattened(f"{name}[{index}]", item)
    else:
        yield _text(name, value)
