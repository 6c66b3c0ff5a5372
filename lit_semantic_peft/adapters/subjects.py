"""Whether a text names something that was taught: an exact search for many names at once."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from ahocorasick_rs import AhoCorasick

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.text import UNSPACED, folded, is_visible

Match = Literal["subjects", "subjects_and_targets"]

_FORMAT = 1  # raised whenever the content of a saved table changes
_MOST_NAMED = 3
_UNSPACED = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True)
class SubjectTable:
    """The names that open a gate: subjects that were taught, their other names, and perhaps the targets.

    A name is found where it stands as whole words, whatever its case, its Unicode form, its dashes and the white space
    in it (`facts.text.folded`, as the scores compare answers). In scripts without spaces every character ends a word.

    Args:
        names: The names as they were written, in any order; those that are folded to the same text count once.
        match: What they are names of.

    Example:
        >>> table = SubjectTable(("Zorvex", "New York"))
        >>> [table.names_in(text) for text in ("Who founded ZORVEX?", "in new  york, Zorvex's", "Zorvexia")]
        [('Zorvex',), ('New York', 'Zorvex'), ()]
    """

    names: tuple[str, ...]
    match: Match = "subjects"

    def __getstate__(self) -> dict[str, Any]:
        """Without the automaton, which is built again where it is needed: it cannot be copied between processes."""
        return {"names": self.names, "match": self.match}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def names_in(self, text: str) -> tuple[str, ...]:
        """The names that a text has, each once, in the order of their first end in the text.

        Args:
            text: Any text, such as a prompt.
        """
        return tuple(dict.fromkeys(name for name, _, _ in self._found(text)))

    def longest_names_in(self, text: str) -> tuple[str, ...]:
        """As `names_in`, without a name where it is a part of a longer one: of "New York" not "York".

        Args:
            text: Any text, such as a prompt.

        Example:
            >>> SubjectTable(("York", "New York")).longest_names_in("From New York to")
            ('New York',)
        """
        return tuple(dict.fromkeys(name for name, _, _ in self.places_in(text)))

    def places_in(self, text: str) -> list[tuple[str, int, int]]:
        """Each place of a name, without those that are a part of a longer one's: the name, its begin and its end.

        Args:
            text: Any text, such as a prompt. The places are those in the text as `facts.text.folded` gives it.

        Example:
            >>> SubjectTable(("York", "New York")).places_in("From NEW  York to")
            [('New York', 5, 13)]
        """
        kept: list[tuple[str, int, int]] = []
        # The longer one first of those that begin together, so that a later one is within an earlier one or reaches on.
        for name, start, end in sorted(self._found(text), key=lambda one: (one[1], -one[2])):
            if not kept or end > kept[-1][2]:
                kept.append((name, start, end))
        return kept

    def opens(self, text: str) -> bool:
        """Whether a text has any of the names.

        Args:
            text: Any text, such as a prompt.
        """
        return bool(self.names_in(text))

    def to_json(self) -> dict[str, Any]:
        """As plain types, for a file."""
        return {"format": _FORMAT, "match": self.match, "names": list(self.names)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "SubjectTable":
        """A table from what `to_json` gave.

        Args:
            value: The object.
            where: The file, for messages.

        Raises:
            InputError: If it is something else, or of another version.
        """
        names = value.get("names")
        if (
            value.get("format") != _FORMAT
            or value.get("match") not in get_args(Match)
            or not isinstance(names, list)
            or not all(isinstance(name, str) and is_visible(name) for name in names)
        ):
            raise InputError(f"{where} is no table of a gate that this version reads. Export the adapter again.")
        return cls(tuple(names), value["match"])

    def _found(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Each place of a name as whole words, with its begin and end in the folded text, by its end."""
        patterns, automaton = self._automaton
        text = folded(text)
        for number, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
            if _is_whole(text, start, end):
                yield patterns[number], start, end

    @cached_property
    def _automaton(self) -> tuple[tuple[str, ...], AhoCorasick]:
        """The first name of each folded form, and the automaton of these forms in the same order."""
        first: dict[str, str] = {}
        for name in self.names:
            first.setdefault(folded(name), name)
        return tuple(first.values()), AhoCorasick(list(first), store_patterns=False)


@dataclass(frozen=True)
class SubjectGate:
    """Lets an adapter act on prompts that name what was taught; on all others the model is the base model, bit for bit.

    Our reading of the routing by knowledge anchors of MEMoE (Wang & Li 2024, arXiv 2405.19086), around any adapter.
    Training is not changed. What a gate costs is what it does not recognise: see docs/gate.md.

    Args:
        match: `subjects`, or `subjects_and_targets`: also the targets and their aliases, which questions in the other
            direction name. Common words among the targets then open the gate often.
        aliases: Other names of subjects, such as `{United States: [USA, U.S.]}`. Unlisted ones are not recognised.

    Raises:
        InputError: If `match` is another one.

    Example:
        >>> facts = [Fact.from_json({"id": "1", "prompt": "Zorvex is based in", "target": "Lund", "subject": "Zorvex"})]
        >>> SubjectGate(match="subjects_and_targets").table(facts).names
        ('Zorvex', 'Lund')
    """

    match: Match = "subjects"
    aliases: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.match not in get_args(Match):
            raise InputError(f"`gate.match` must be one of {', '.join(get_args(Match))}, got {self.match!r}")

    def table(self, facts: Sequence[Fact]) -> SubjectTable:
        """The names that open the gate for some facts.

        Args:
            facts: What is taught.

        Raises:
            InputError: If a fact has no subject, or its own prompt names none, or an alias is of no subject.
        """
        if missing := [fact for fact in facts if not is_visible(fact.subject)]:
            raise InputError(
                f"`gate`: {len(missing)} of {len(facts)} taught facts have no `subject`, by which their prompts are "
                f"recognised: {_listed(missing)}. Name the column that holds it (`convert --columns subject=COLUMN`), "
                "write it into the file, or leave out `--recipe gated` or `model.gate`."
            )
        subjects = dict.fromkeys(fact.subject for fact in facts)
        if unknown := [subject for subject in self.aliases if subject not in subjects]:
            raise InputError(
                f"`gate.aliases` has {', '.join(map(repr, unknown[:_MOST_NAMED]))}, which no taught fact has as its "
                "`subject`. Write the subject as the facts do."
            )
        names = [name for subject in subjects for name in (subject, *self.aliases.get(subject, []))]
        if blank := [name for name in names if not is_visible(name)]:
            raise InputError(f"`gate.aliases` has a name that shows nothing: {blank[0]!r}. Leave it out.")
        if self.match == "subjects_and_targets":
            names += [answer for fact in facts for answer in fact.accepted_answers]
        table = SubjectTable(tuple(dict.fromkeys(names)), self.match)
        if closed := [fact for fact in facts if not table.opens(fact.prompt)]:
            raise InputError(
                f"`gate`: the own prompts of {len(closed)} of {len(facts)} taught facts do not name a subject, so that "
                f"the gate would stay closed on them: {_listed(closed)}. Add the name that the prompt uses to "
                "`model.gate.aliases`, correct the `subject`, or leave out `--recipe gated` or `model.gate`."
            )
        return table


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a part of a text begins and ends where words do."""
    return all(_is_edge(text[place - 1 : place], text[place : place + 1]) for place in (start, end))


def _is_edge(before: str, after: str) -> bool:
    """Whether a word ends between two characters, either of which may be missing."""
    if not (before and after) or _UNSPACED.match(before) or _UNSPACED.match(after):
        return True
    return not (_is_of_word(before) and _is_of_word(after))


def _is_of_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def _listed(facts: Sequence[Fact]) -> str:
    shown = "; ".join(f"{fact.location or fact.id}: {fact.prompt!r}" for fact in facts[:_MOST_NAMED])
    return shown + ("; ..." if len(facts) > _MOST_NAMED else "")
