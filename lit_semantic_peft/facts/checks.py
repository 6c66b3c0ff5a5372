"""Checks on the text of a set of facts: which facts contradict each other, and which are near-duplicates."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.schema import Fact
from lit_semantic_peft.facts.text import unicode_form

# Chinese, Japanese and Korean write no spaces between words: there each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The same prompt with two targets that exclude each other.

    Attributes:
        first: The fact that comes first in the set.
        second: The later fact that contradicts it.
    """

    first: Fact
    second: Fact

    def __str__(self) -> str:
        """One line for a report: the prompt, both targets, and their locations."""
        return (
            f"{self.first.prompt!r}: {self.first.target!r} ({_name(self.first)}) "
            f"or {self.second.target!r} ({_name(self.second)})"
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
    """Finds facts with the same prompt but different targets.

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
    seen: dict[str, list[tuple[Fact, str, frozenset[str]]]] = defaultdict(list)
    found: list[Contradiction] = []
    for fact in facts:
        target = normalize_text(fact.target)
        accepted = frozenset(normalize_text(answer) for answer in fact.accepted_answers)
        earlier = seen[normalize_text(fact.prompt)]
        for other, other_target, other_accepted in earlier:
            if target not in other_accepted and other_target not in accepted:
                found.append(Contradiction(other, fact))
                break
        earlier.append((fact, target, accepted))
    return found


def find_near_duplicates(facts: Sequence[Fact], threshold: float = 0.9) -> list[NearDuplicate]:
    """Finds facts whose prompts and targets together contain nearly the same words.

    The similarity is the Jaccard index of the two sets of words. Word order, case and punctuation are ignored. The
    search is exact but not quadratic: two sets can only reach the threshold if they share one of their rarest words,
    so only such pairs are compared.

    Args:
        facts: The facts, in order.
        threshold: Least similarity that is reported, in `(0, 1]`.

    Returns:
        The pairs, most similar first, then in the order of the set. Facts with exactly the same words are paired only
        with the first of them, and only that first one is compared with other facts. So a set that holds one text a
        thousand times gives 999 pairs, not half a million.

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

    spread = Counter(word for words in first_with for word in words)
    holders: dict[str, list[tuple[int, frozenset[str]]]] = defaultdict(list)
    for words, index in first_with.items():
        rarest_first = sorted(words, key=lambda word: (spread[word], word))
        # Any set that shares at least ceil(t·|x|) words with x shares one of these.
        # Subtracting 1e-9 keeps 0.9 · 10 = 9.000000000000002 from being rounded up to 10.
        prefix = rarest_first[: len(words) - math.ceil(threshold * len(words) - 1e-9) + 1]
        candidates = {other_index: other for word in prefix for other_index, other in holders[word]}
        for other_index, other in candidates.items():
            common = len(words & other)
            similarity = common / (len(words) + len(other) - common)
            if similarity >= threshold:
                found.append((similarity, other_index, index))
        for word in prefix:
            holders[word].append((index, words))
    found.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [NearDuplicate(facts[first], facts[second], similarity) for similarity, first, second in found]


def _text(fact: Fact) -> str:
    return f"{fact.prompt} {fact.target}"


def _name(fact: Fact) -> str:
    return f"fact {fact.id!r}, {fact.location}" if fact.location else f"fact {fact.id!r}"
