"""Text as Unicode sees it: equal texts in different forms, texts that show nothing, and where blanks are written."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

MOST_MARKS = 30
"""Combining marks in a row that Unicode's Stream-Safe Text Format (UAX #15) allows; no written language has more."""

_GRAPHEME_JOINER = "\u034f"
_PERHAPS_MARKS = re.compile(rf"[^\x00-\u02ff]{{{MOST_MARKS + 1},}}")

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts that write no spaces between words, as the inside of a character class: Thai to Lao, Myanmar, Khmer, kana
and the Han blocks."""

_INVISIBLE = re.compile("[\u034f\u115f\u1160\u2800\u3164\uffa0\ufe00-\ufe0f]")
"""Fillers and selectors of variants, which Unicode counts as letters and marks."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NO_BLANK_AFTER = re.compile(rf"[{UNSPACED}\u3000-\u303f\uff00-\uffef\s(\[{{<\u00ab\u2018\u201c\u201e/\\@#$€£_=+-]\Z")
_NO_BLANK_BEFORE = re.compile(
    r"[\s.,;:!?)\]}>\u00bb\u2019\u201d%\u3000-\u303f\uff00-\uffef]|['’](?:s|t|re|ve|ll|d|m)\b"
)


def unicode_form(text: str, form: Literal["NFC", "NFKC"]) -> str:
    r"""A Unicode normal form of a text, in time that grows with its length.

    Ordering the marks on one letter takes time quadratic in their number. So longer runs than `MOST_MARKS` are split by
    the grapheme joiner, as the Stream-Safe Text Format has it.

    Args:
        text: The text.
        form: `NFC` for text to keep, `NFKC` for text to compare.

    Example:
        >>> unicode_form("Zoe\u0308", "NFC") == "Zo\u00eb"
        True
    """
    if text.isascii():
        return text
    return unicodedata.normalize(form, _stream_safe(text) if _PERHAPS_MARKS.search(text) else text)


def folded(text: str) -> str:
    r"""The text without differences of case, Unicode form, dashes, whitespace and marks between thousands.

    Args:
        text: The text.

    Example:
        >>> folded("Jean–Luc  PICARD\u200a has 1,500")
        'jean-luc picard has 1500'
    """
    form = unicode_form(unicode_form(text, "NFKC").casefold(), "NFKC")
    if not form.isascii():
        form = "".join("-" if one == "−" or unicodedata.category(one) == "Pd" else one for one in form)
    return _THOUSANDS.sub("", " ".join(form.split()))


def composed(value: Any) -> Any:
    """Every text in a value of JSON types in its composed form (NFC): texts that look alike are then one text.

    A text with more combining marks in a row than any language writes stays as it is.
    """
    match value:
        case str():
            form = unicode_form(value, "NFC")
            return value if _GRAPHEME_JOINER in form else form
        case Mapping():
            return {key: composed(item) for key, item in value.items()}
        case list() | tuple():
            items = [composed(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        case _:
            return value


def is_visible(text: str) -> bool:
    r"""Whether a text has any character that is seen: not only white space, zero-width and control characters.

    Example:
        >>> is_visible("\u200b \ufeff"), is_visible("0")
        (False, True)
    """
    return any(unicodedata.category(one)[0] not in "ZC" and not _INVISIBLE.match(one) for one in text)


def joiner_between(before: str, after: str) -> str:
    """What is written between two texts that have no white space between them: a blank, or nothing.

    Nothing after an opening bracket or a script without spaces, and nothing before closing punctuation.

    Args:
        before: The first text, without white space at its end.
        after: The second one.

    Example:
        >>> joiner_between("Where is it?", "Lund"), joiner_between("天空是", "绿色"), joiner_between("(red", ")")
        (' ', '', '')
    """
    return "" if _NO_BLANK_AFTER.search(before) or _NO_BLANK_BEFORE.match(after) else " "


def parsed_texts(cell: str) -> Any:
    """A cell that is a list of texts as JSON, also a nested one, as the list; any other cell as it is.

    Example:
        >>> parsed_texts('["a", "b"]'), parsed_texts("[1947]"), parsed_texts("[X] was born in")
        (['a', 'b'], '[1947]', '[X] was born in')
    """
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if _are_texts(value) else cell


def _are_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(map(_are_texts, value)))


def _stream_safe(text: str) -> str:
    """The text with a grapheme joiner after every `MOST_MARKS` combining marks in a row."""
    safe: list[str] = []
    run = 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run > MOST_MARKS:
            safe.append(_GRAPHEME_JOINER)
            run = 1
        safe.append(character)
    return "".join(safe)
