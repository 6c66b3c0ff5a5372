"""Formats of fine-tuning libraries: `prompt` with `completion`, and chat `messages`, as in TRL."""

import re
from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import (
    Dropped,
    FieldError,
    Format,
    Outcome,
    Record,
    build_fact,
    fields,
    is_question,
)
from lit_semantic_peft.facts.reading import described, shown

_ROLES = ("system", "developer", "user", "assistant", "tool")


def _prompt_completion(record: Record) -> Iterator[Outcome]:
    """Two texts, joined as a trainer would join them: the white space between them is the joiner.

    If there is none although one word ends and another begins there, a space is inserted. Two lists of messages are
    read as one conversation.
    """
    if isinstance(record.fields.get("prompt"), list) or isinstance(record.fields.get("completion"), list):
        yield from _conversation([*record.records("prompt"), *record.records("completion")], PROMPT_COMPLETION.title)
        return
    prompt, completion = (_raw(record, name) for name in ("prompt", "completion"))
    between = prompt[len(prompt.rstrip()) :] + completion[: len(completion) - len(completion.lstrip())]
    if not between and re.search(r"\w$", prompt) and re.match(r"\w", completion):
        between = " "
    question = prompt.strip()
    yield from build_fact(
        PROMPT_COMPLETION.title,
        prompt,
        completion,
        joiner=between,
        question=question if is_question(question) else "",
    )


def _messages(record: Record) -> Iterator[Outcome]:
    """One question of the user and one answer of the assistant, as they stand; `template: chat` wraps them."""
    yield from _conversation(record.records("messages"), MESSAGES.title)


def _conversation(messages: list[Record], title: str) -> Iterator[Outcome]:
    turns: list[tuple[str, str]] = []
    for message in messages:
        role = message.text("role")
        if role not in _ROLES:
            expected = "one of " + ", ".join(f"`{known}`" for known in _ROLES)
            raise FieldError(f"{message.path}role", expected, shown(role))
        content = _content(message)
        if content is None:
            yield Dropped("a message holds more than text")
            return
        turns.append((role, content))
    spoken = [(role, content) for role, content in turns if role not in ("system", "developer")]
    if [role for role, _ in spoken] != ["user", "assistant"]:
        yield Dropped(
            "several turns: the answer depends on what was said before"
            if len(spoken) > 2
            else "not one question of the user followed by one answer of the assistant"
        )
        return
    if len(spoken) < len(turns):
        yield Dropped("a fact has no field for instructions", "system message")
    (_, prompt), (_, target) = spoken
    yield from build_fact(title, prompt, target, question=prompt.strip() if is_question(prompt) else "")


def _content(message: Record) -> str | None:
    """The text of a message, or None where it holds something else too."""
    value = message.fields.get("content")
    if isinstance(value, list):
        parts = message.records("content")
        return "".join(_raw(part, "text") for part in parts) if all(part.has("text") for part in parts) else None
    return _raw(message, "content")


def _raw(record: Record, name: str) -> str:
    """The text of a field with the white space around it, which determines how two texts are joined."""
    value = record.fields.get(name)
    if not isinstance(value, str):
        raise FieldError(record.path + name, "text or a list of messages", described(value))
    record.text(name)  # refuses text that cannot be encoded
    return value


PROMPT_COMPLETION = Format(
    "prompt-completion", "prompt and completion", (fields("prompt", "completion"),), _prompt_completion
)

MESSAGES = Format("messages", "chat messages", (fields("messages"),), _messages)
