"""Text for the terminal: as it is, without control characters that a terminal would obey, and of bounded length."""

import argparse
import logging
import re
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

LONGEST_MESSAGE = 4_000
"""Characters that are shown of a message."""

# C0 and C1 without tab and line feed, what turns the direction of the text around it, and halves of characters.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Text with its control characters as escapes; tabs and line feeds stay.

    Args:
        text: Of a fact, an answer, a name or an error.

    Example:
        >>> print(visible("\x1b[2J\rname"))
        \x1b[2J\rname
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def message(text: str) -> str:
    """`visible` text of at most `LONGEST_MESSAGE` characters: the middle of a longer one is left out.

    Args:
        text: Of an error.
    """
    text = visible(text)
    if len(text) <= LONGEST_MESSAGE:
        return text
    half = LONGEST_MESSAGE // 2 - 40
    return f"{text[:half]}\n… ({len(text) - 2 * half} characters are left out) …\n{text[-half:]}"


class TextConsole(Console):
    """A console that shows texts as they are: no markup in them is read, no control character reaches the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    @override
    def render_str(self, text: str, *arguments: Any, **settings: Any) -> Text:
        return super().render_str(visible(text), *arguments, **settings)

    @override
    def render(self, *arguments: Any, **settings: Any) -> Iterator[Segment]:
        """What is printed of anything, also of a `Text` that was made elsewhere."""
        for segment in super().render(*arguments, **settings):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class TextFormatter(logging.Formatter):
    """Formats log records as `visible` text."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class TextArgumentParser(argparse.ArgumentParser):
    """Shows help and errors as `visible` text: both contain what was typed."""

    @override
    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(visible(message), file)
