"""Whether an answer is correct: comparison of normalised text. Our definition; close to SQuAD's evaluation script.

Never a substring match: an empty answer matches nothing, and "Parisian" is not "Paris".
"""

import re
import unicodedata
from collections.abc import Sequence

from lit_semantic_peft.facts.text import UNSPACED, folded

# Quotation marks may precede an article, but a space follows it: the A of "A-1" and of "A. Milne" is none.
_LEADING_ARTICLE = re.compile(r"^([^\w#%&@]*)(?:a|an|the) (?=.*\w)")
# Punctuation that changes the meaning: C# is not C, 5% is not 5.
_MEANINGFUL = frozenset("#%&@")
# Punctuation that changes a number: 3.5 is not 35, 1/2 is not 12.
_INSIDE_NUMBERS = frozenset(".,:/-")
_SEPARATING = frozenset("-/\\|")
_UNSPACED = re.compile(f"[{UNSPACED}]")


def normalize_answer(text: str) -> str:
    """The text without differences that do not change an answer.

    Unicode NFKC, casefold; punctuation removed (dashes and slashes become spaces) except where it carries meaning
    (`#`, `%`, `&`, `@`, inside a number, a minus sign); all dashes alike; whitespace collapsed; one leading English
    article removed. Only a leading word, so that "Vitamin A" is not "vitamin" and "A-1" is not "1". Only a blank text
    becomes empty: a text that is nothing but punctuation is only casefolded.

    Args:
        text: An answer or a target.

    Returns:
        The normalised text.

    Example:
        >>> normalize_answer("  The Jean-Luc  Picard! ")
        'jean luc picard'
        >>> normalize_answer("."), normalize_answer("The The"), normalize_answer("U.S."), normalize_answer("3.5")
        ('.', 'the', 'us', '3.5')
    """
    return _without_punctuation(_LEADING_ARTICLE.sub(r"\1 ", folded(text)))


def is_exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the normalised answer equals one of the normalised accepted answers.

    Args:
        answer: The generated answer, up to its end token.
        accepted: The target and its aliases.

    Returns:
        False for an empty answer, whatever the accepted ones.

    Example:
        >>> [is_exact_match(answer, ["Paris"]) for answer in ("the Paris.", "Paris, France", "")]
        [True, False, False]
    """
    normalized = normalize_answer(answer)
    return bool(normalized) and any(normalized == normalize_answer(candidate) for candidate in accepted)


def starts_with_answer(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer begins with an accepted one that ends at a word boundary.

    For a base model that knows the answer but does not stop after it. In scripts without spaces (Chinese, Japanese,
    Thai, ...) every character ends a word.

    Args:
        answer: The generated answer.
        accepted: The target and its aliases.

    Returns:
        False for an empty answer and for empty accepted ones.

    Example:
        >>> starts_with_answer("Paris, the capital", ["Paris"]), starts_with_answer("Parisian", ["Paris"])
        (True, False)
        >>> starts_with_answer("东京是日本的首都", ["东京"])
        True
    """
    return any(
        _is_word_prefix(form(candidate), form(answer))
        for candidate in accepted
        # Compared with and without the leading article, on both sides: "A" is an answer, "the" of "The The" is not.
        for form in (_with_article, normalize_answer)
    )


def _is_word_prefix(prefix: str, text: str) -> bool:
    if not prefix or not text.startswith(prefix):
        return False
    rest = text[len(prefix) :]
    return not rest or rest[0] == " " or bool(_UNSPACED.match(prefix[-1]) or _UNSPACED.match(rest[0]))


def _with_article(text: str) -> str:
    return _without_punctuation(folded(text))


def _without_punctuation(text: str) -> str:
    kept = " ".join("".join(_kept(text, position) for position in range(len(text))).split())
    return kept or text


def _kept(text: str, position: int) -> str:
    """What one character becomes: itself, a space, or nothing."""
    character = text[position]
    category = unicodedata.category(character)
    if category == "Cf":  # zero-width marks
        return ""
    if not category.startswith("P") or character in _MEANINGFUL:
        return character
    before = text[position - 1 : position]
    after = text[position + 1 : position + 2]
    if after.isdigit() and (
        (before.isdigit() and character in _INSIDE_NUMBERS) or (not before.isalnum() and character == "-")
    ):
        return character
    return " " if character in _SEPARATING else ""
