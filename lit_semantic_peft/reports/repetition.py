"""How much of what a model answers is one answer: recall that a single answer brings is not knowledge."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lit_semantic_peft.facts import normalize_text
from lit_semantic_peft.reports.records import Repetition

_WORD = re.compile(r"\w+")
_LAST_MARKS = " \t\n.,;:!?\"'"


def answer_key(answer: str) -> str:
    """By what answers are compared: `normalize_text` without the punctuation at their ends.

    Args:
        answer: An answer, or a target.
    """
    return normalize_text(answer).strip(_LAST_MARKS)


def measure_repetition(rows: Sequence[Mapping[str, Any]]) -> Repetition | None:
    """The most frequent answer and the most frequent word of the trained model's answers.

    Answers are compared by `answer_key`. Of equally frequent ones the first
    in the alphabet is taken. An answer holds a word once.

    Args:
        rows: Rows of the fact table.

    Returns:
        The counts; None where fewer than two facts were answered.
    """
    answered = [row for row in rows if row["answer_after"] is not None]
    if len(answered) < 2:
        return None
    keys = [answer_key(row["answer_after"]) for row in answered]
    most, num_given = _most_common(Counter(keys))
    targets = Counter(answer_key(row["target"]) for row in answered)
    words = Counter(word for key in keys for word in set(_WORD.findall(key)))
    word, num_with_word = _most_common(words) if words else ("", 0)
    of_targets = sum(word in _WORD.findall(normalize_text(row["target"])) for row in answered)
    return Repetition(
        num_answers=len(answered),
        num_right=sum(row["efficacy_after"] is True for row in answered),
        answer=next(row["answer_after"] for row, key in zip(answered, keys, strict=True) if key == most),
        num_given=num_given,
        num_given_right=sum(
            row["efficacy_after"] is True for row, key in zip(answered, keys, strict=True) if key == most
        ),
        num_targets=targets[most],
        word=word,
        word_share=num_with_word / len(answered),
        word_share_of_targets=of_targets / len(answered),
    )


def _most_common(counts: Counter[str]) -> tuple[str, int]:
    return min(counts.items(), key=lambda item: (-item[1], item[0]))
