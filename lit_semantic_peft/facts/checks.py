"""Checks on the text of a set of facts: which facts contradict each other, and which are near-duplicates."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.schema import Fact, Form
from lit_semantic_peft.facts.similar_words import similar_earlier
from lit_semantic_peft.facts.text import unicode_form

# Chinese, Japanese and Korean write no spaces between words: there each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The same prompt with two targets that exclude each other.

    Attributes:
        first: The fact that comes first in the set.
        second: The later fact that contradicts it; the same one, if two of its own forms contradict each other.
        first_form: Prompt and target of the first: its own, or one of its forms.
        second_form: Those of the second.
    """

    first: Fact
    second: Fact
    first_form: Form
    second_form: Form

    def __str__(self) -> str:
        """One line for a report: the prompt, both targets, and their locations."""
        return (
            f"{self.first_form.prompt!r}: {self.first_form.target!r} ({_name(self.first)}) "
            f"or {self.second_form.target!r} ({_name(self.second)})"
        )


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two facts with nearly the same words.

    Attributes:
        first: The fact that comes first in the set.
        second: The later fact.
        similarity: Words in common divided by words in either, in `[0, 1]`.
    """

    first: Fact
    second: Fact
    similarity: float

    def __str__(self) -> str:
        """One line for a report: the similarity, both texts, and their locations."""
        return (
            f"{self.similarity:.2f}: '{_text(self.first)}' ({_name(self.first)}) "
            f"and '{_text(self.second)}' ({_name(self.second)})"
        )


@dataclass(frozen=True, slots=True)
class NearDuplicateGroup:
    """Facts that are connected by near-duplication.

    Attributes:
        facts: The facts, at least two.
    """

    facts: tuple[Fact, ...]

    @property
    def template(self) -> str:
        """The text of the first fact, with `…` for what is not in every fact of the group."""
        first, *others = (_text(fact).split() for fact in self.facts)
        common = set(first).intersection(*others)
        words = [word if word in common else "…" for word in first]
        return " ".join(word for word, before in zip(words, ["", *words], strict=False) if (word, before) != ("…", "…"))

    def __str__(self) -> str:
        """One line for a report: how many facts, what they have in common, and the first two of them."""
        names = ", ".join(map(_name, self.facts[:2]))
        more = f" and {len(self.facts) - 2} more" if len(self.facts) > 2 else ""
        return f"{len(self.facts)} facts like {self.template!r} ({names}{more})"


def normalize_text(text: str) -> str:
    """Normalizes text for comparison: every run of whitespace becomes one space; case and Unicode form are ignored.

    Args:
        text: Any text.

    Returns:
        The normalized text.

    Example:
        >>> normalize_text("  Port  Vila ") == normalize_text("port vila")
        True
    """
    return unicode_form(" ".join(text.split()).casefold(), "NFC")


def find_contradictions(facts: Sequence[Fact]) -> list[Contradiction]:
    """Finds facts with the same prompt, their own or that of a form, but different targets.

    Prompts and targets are compared by `normalize_text`; the joiner does not matter. Two targets do not contradict
    each other when one is an alias of the other.

    Args:
        facts: The facts, in order.

    Returns:
        One entry for each fact that contradicts an earlier one (the earliest such), in the order of the set.

    Example:
        >>> facts = [Fact("a", "Ivory comes from", "elephants"), Fact("b", "ivory comes from", "soap")]
        >>> print(find_contradictions(facts)[0])
        'Ivory comes from': 'elephants' (fact 'a') or 'soap' (fact 'b')
    """
    seen: dict[str, list[_Statement]] = defaultdict(list)
    found: dict[str, Contradiction] = {}
    for fact in facts:
        for form in (Form(fact.prompt, fact.target, fact.joiner), *fact.forms):
            statement = _Statement(fact, form)
            earlier = seen[normalize_text(form.prompt)]
            first = next((other for other in earlier if not other.agrees_with(statement)), None)
            if first is not None:
                found.setdefault(fact.id, Contradiction(first.fact, fact, first.form, form))
            earlier.append(statement)
    return list(found.values())


@dataclass(frozen=True)
class _Statement:
    """A fact's own prompt or one of its forms, with what follows."""

    fact: Fact
    form: Form

    @cached_property
    def accepted(self) -> frozenset[str]:
        answers = self.fact.accepted_answers if self.form.target == self.fact.target else (self.form.target,)
        return frozenset(normalize_text(answer) for answer in answers)

    def agrees_with(self, other: "_Statement") -> bool:
        targets = normalize_text(self.form.target), normalize_text(other.form.target)
        return targets[0] in other.accepted or targets[1] in self.accepted


def find_near_duplicates(facts: Sequence[Fact], threshold: float = 0.9) -> list[NearDuplicate]:
    """Finds facts whose prompts and targets together contain nearly the same words.

    The similarity is the Jaccard index of the two sets of words. Word order, case and punctuation are ignored. The
    search is exact, but few pairs are compared. Facts are taken from few words to many, and each is paired with the
    first of those before it that is similar.

    Args:
        facts: The facts, in order.
        threshold: Least similarity that is reported, in `(0, 1]`.

    Returns:
        One pair for each fact that nearly repeats one before it, the most similar first, then in the order of the set.
        So there are fewer pairs than facts, also where one template gives them all.

    Raises:
        InputError: If `threshold` is outside `(0, 1]`.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"`threshold`: expected a number in (0, 1], got {threshold}")
    found: list[tuple[float, int, int]] = []
    first_with: dict[frozenset[str], int] = {}
    for index, fact in enumerate(facts):
        words = frozenset(_WORD.findall(normalize_text(_text(fact))))
        if not words:  # only punctuation: nothing to compare
            continue
        first = first_with.setdefault(words, index)
        if first != index:
            found.append((1.0, first, index))

    in_order = sorted(first_with.items(), key=lambda item: len(item[0]))
    for place, earlier, similarity in similar_earlier([words for words, _ in in_order], threshold):
        first, second = sorted((in_order[place][1], in_order[earlier][1]))
        found.append((similarity, first, second))
    found.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [NearDuplicate(facts[first], facts[second], similarity) for similarity, first, second in found]


def group_near_duplicates(pairs: Sequence[NearDuplicate]) -> list[NearDuplicateGroup]:
    """Groups facts that are connected by near-duplication, which one template usually connects.

    Args:
        pairs: From `find_near_duplicates`.

    Returns:
        The groups, the largest first, then in the order of the pairs.

    Example:
        >>> text = "The long road to the town of {} leads to"
        >>> facts = [Fact(name, text.format(name), "Lund") for name in ("Aro", "Eln", "Jorn")]
        >>> print(group_near_duplicates(find_near_duplicates(facts, 0.7))[0])
        3 facts like 'The long road to the town of … leads to Lund' (fact 'Aro', fact 'Eln' and 1 more)
    """
    group_of: dict[str, list[Fact]] = {}
    for pair in pairs:
        first, second = (group_of.setdefault(fact.id, [fact]) for fact in (pair.first, pair.second))
        if first is not second:
            larger, smaller = (first, second) if len(first) >= len(second) else (second, first)
            larger += smaller
            for fact in smaller:
                group_of[fact.id] = larger
    groups = {id(group): group for pair in pairs for group in [group_of[pair.first.id]]}
    return sorted((NearDuplicateGroup(tuple(group)) for group in groups.values()), key=lambda one: -len(one.facts))


def _text(fact: Fact) -> str:
    return f"{fact.prompt} {fact.target}"


def _name(fact: Fact) -> str:
    return f"fact {fact.id!r}, {fact.location}" if fact.location else f"fact {fact.id!r}"
