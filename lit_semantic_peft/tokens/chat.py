"""Chat templates: what a template writes around a question and its answer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from traceback import extract_tb
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.reading import shown

logger = logging.getLogger(__name__)

_QUESTION, _ANSWER = "Some question 8a31?", "Some answer 5c72"  # texts that no template holds
_OTHER_QUESTION = "Another question 40be?"
_FILE_OF_TEMPLATES = "<template>"  # as Jinja names compiled text in tracebacks


@dataclass(frozen=True, slots=True)
class ChatForm:
    """What a template writes between the question and the answer, and after the answer.

    Attributes:
        header: What follows the rendering for generation up to the answer: of a template without a generation prompt
            the beginning of the assistant's turn, else nothing.
        joiner: White space between that and the answer. The model is to generate it.
        tail: What follows the answer.
    """

    header: str
    joiner: str
    tail: str


def chat_form(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> ChatForm:
    """Compares a template's rendering of a whole conversation with its rendering for generation.

    Where the conversation goes on from the text for generation, what stands between that text and the answer belongs
    to the prompt. Where it does not, what will be asked is taught: the text for generation, and the log says so.

    Args:
        tokenizer: Its template is rendered.
        arguments: Of the template, besides the turns.

    Raises:
        InputError: If the template raises, or leaves the question out, so that all facts would have one prompt.
    """
    asked, otherwise = ([{"role": "user", "content": text}] for text in (_QUESTION, _OTHER_QUESTION))
    answered = [*asked, {"role": "assistant", "content": _ANSWER}]
    for_generation = render(tokenizer, asked, arguments, add_generation_prompt=True)
    if for_generation == render(tokenizer, otherwise, arguments, add_generation_prompt=True):
        raise InputError(
            f"The chat template of {tokenizer.name_or_path} leaves out the user's question: it always renders "
            f"{shown(for_generation)}. Mend the template (`content` is a text here, no list of parts), or use "
            "`--data.encoding.template none`."
        )
    whole = render(tokenizer, answered, arguments)
    start = len(for_generation) if whole.startswith(for_generation) else 0
    between, answer, tail = whole[start:].partition(_ANSWER)  # a template may write the answer again later
    if not start or not answer:
        written = f"{between!r} before an answer of a conversation" if answer else "no such answer in a conversation"
        _say(
            f"The chat template of {tokenizer.name_or_path} writes {for_generation!r} for generation and {written}. "
            "The text for generation is taught, since it is what will be asked."
        )
        return ChatForm("", "", tail)
    header = between.rstrip()
    if header:
        _say(
            f"The chat template of {tokenizer.name_or_path} writes no whole generation prompt: {header!r}, with which "
            "it begins an answer, is added to each prompt."
        )
    return ChatForm(header, between[len(header) :], tail)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    arguments: Mapping[str, Any],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Turns of a conversation as the template writes them.

    Args:
        tokenizer: Its template is rendered.
        messages: `role` and `content` of each turn.
        arguments: Of the template, besides the turns.
        add_generation_prompt: Whether the assistant's turn is begun.

    Raises:
        InputError: If the template raises; it names the template and the line.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **arguments
            )
        )
    except Exception as error:  # a template is a program: it can raise anything
        line = _line(error)
        place = f"{tokenizer.name_or_path}, line {line}" if line else tokenizer.name_or_path
        raise InputError(
            f"The chat template of {place}: {type(error).__name__}: {error}. Mend the template, set what it reads by "
            "`--data.encoding.chat_template_kwargs`, or use `--data.encoding.template none`."
        ) from error


def _line(error: Exception) -> int | None:
    """The line of the template at which it failed."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == _FILE_OF_TEMPLATES]
    return lines[-1] if lines else None


@lru_cache(maxsize=64)
def _say(message: str) -> None:
    """Warns once, however many encoders use the template."""
    logger.warning(message)
