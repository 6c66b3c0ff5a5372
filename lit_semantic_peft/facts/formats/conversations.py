"""Formats of fine-tuning libraries: `prompt` with `completion` and chat `messages` as in TRL, Alpaca, ShareGPT."""

from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import (
    Dropped,
    FieldError,
    Format,
    Noted,
    Outcome,
    Record,
    build_fact,
    fields,
    is_question,
)
from lit_semantic_peft.facts.reading import described, listed, shown
from lit_semantic_peft.facts.text import joiner_between

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_SPEAKERS |= {"function_call": "assistant", "observation": "tool"}
"""Other names of the roles, in ShareGPT and its descendants."""

_PAIRS = (("query", "response"), ("prompt", "response"), ("instruction", "response"), ("input", "output"))


def _prompt_completion(record: Record) -> Iterator[Outcome]:
    """Two texts, joined as a trainer would join them: the white space between them is the joiner.

    If there is none, they are joined as the text would be written (`joiner_between`). Two lists of messages are read
    as one conversation.
    """
    if isinstance(record.fields.get("prompt"), list) or isinstance(record.fields.get("completion"), list):
        yield from _conversation([*record.records("prompt"), *record.records("completion")], PROMPT_COMPLETION.title)
        return
    yield from _joined(PROMPT_COMPLETION.title, _raw(record, "prompt"), _raw(record, "completion"))


def _query_response(record: Record) -> Iterator[Outcome]:
    """A text of the user and what is answered, joined as `prompt` and `completion` are."""
    query, response = max(_PAIRS, key=lambda pair: sum(name in record.fields for name in pair))
    yield from _joined(QUERY_RESPONSE.title, _raw(record, query), _raw(record, response))


def _alpaca(record: Record) -> Iterator[Outcome]:
    """The instruction, with the input in a line below it, and the output, without Alpaca's own frame around them."""
    if record.has("history"):
        yield Dropped(_SEVERAL_TURNS)
        return
    if record.has("system"):
        yield Dropped(_INSTRUCTIONS, "system")
    prompt = "\n".join(filter(None, (record.text("instruction"), record.optional_text("input"))))
    yield from _joined(ALPACA.title, prompt, _raw(record, "output"))


def _joined(title: str, prompt: str, completion: str) -> Iterator[Outcome]:
    between = prompt[len(prompt.rstrip()) :] + completion[: len(completion) - len(completion.lstrip())]
    question = prompt.strip()
    if not between and question and completion:
        between = joiner_between(prompt, completion)
        yield Noted(
            f"no white space between prompt and answer, joined {'by a blank' if between else 'without a blank'}"
        )
    yield from build_fact(title, prompt, completion, joiner=between, question=question if is_question(question) else "")


def _messages(record: Record) -> Iterator[Outcome]:
    """One question of the user and one answer of the assistant, as they stand; `template: chat` wraps them."""
    yield from _conversation(record.records("messages"), MESSAGES.title)


def _sharegpt(record: Record) -> Iterator[Outcome]:
    """As chat messages, where `from` names the speaker and `value` holds the text."""
    if record.has("system"):
        yield Dropped(_INSTRUCTIONS, "system")
    yield from _conversation(record.records("conversations"), SHAREGPT.title)


def _conversation(messages: list[Record], title: str) -> Iterator[Outcome]:
    turns: list[tuple[str, str]] = []
    for message in messages:
        speaker = "from" if "from" in message.fields else "role"
        role = message.text(speaker)
        role = _SPEAKERS.get(role, role) if speaker == "from" else role
        if role not in _ROLES:
            expected = listed(_ROLES if speaker == "role" else (*_ROLES, *_SPEAKERS))
            raise FieldError(f"{message.path}{speaker}", f"one of {expected}", shown(role))
        content = _content(message, "value" if "value" in message.fields else "content")
        if content is None:
            yield Dropped("a message holds more than text")
            return
        turns.append((role, content))
    spoken = [(role, content) for role, content in turns if role not in ("system", "developer")]
    if [role for role, _ in spoken] != ["user", "assistant"]:
        yield Dropped(
            _SEVERAL_TURNS
            if len(spoken) > 2
            else "not one question of the user followed by one answer of the assistant"
        )
        return
    if len(spoken) < len(turns):
        yield Dropped(_INSTRUCTIONS, "system message")
    (_, prompt), (_, target) = spoken
    yield from build_fact(title, prompt, target, question=prompt.strip() if is_question(prompt) else "")


_SEVERAL_TURNS = "several turns: the answer depends on what was said before"
_INSTRUCTIONS = "a fact has no field for instructions"


def _content(message: Record, name: str) -> str | None:
    """The text of a message, or None where it holds something else too."""
    if isinstance(message.fields.get(name), list):
        parts = message.records(name)
        for part in parts:
            part.has("type")  # that it is text is all it says
        return "".join(_raw(part, "text") for part in parts) if all(part.has("text") for part in parts) else None
    return _raw(message, name)


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

QUERY_RESPONSE = Format(
    "query-response", "query and response", tuple(fields(*pair) for pair in _PAIRS), _query_response
)

ALPACA = Format("alpaca", "Alpaca", (fields("instruction", "output"),), _alpaca)

SHAREGPT = Format("sharegpt", "ShareGPT", (fields("conversations"),), _sharegpt)
