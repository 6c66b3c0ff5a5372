"""Published formats: each a pure function from a record to facts, or to the reason why it is left out."""

from collections.abc import Collection

from lit_semantic_peft.facts.formats.conversations import (
    ALPACA,
    MESSAGES,
    PROMPT_COMPLETION,
    QUERY_RESPONSE,
    SHAREGPT,
)
from lit_semantic_peft.facts.formats.counterfact import COUNTERFACT, COUNTERFACT_FLAT
from lit_semantic_peft.facts.formats.knowedit import KNOWEDIT
from lit_semantic_peft.facts.formats.mquake import MQUAKE
from lit_semantic_peft.facts.formats.questions import (
    EDITATTACK,
    ENTITY_QUESTIONS,
    HALLUEDITBENCH,
    POPQA,
    QUESTION_ANSWER,
    SQUAD,
    TOFU,
)
from lit_semantic_peft.facts.formats.record import Dropped, FieldError, Format, Noted, Outcome, Record
from lit_semantic_peft.facts.formats.ripple_edits import RIPPLE_EDITS
from lit_semantic_peft.facts.formats.triples import TRIPLES, are_templates, templates_of
from lit_semantic_peft.facts.formats.unread import UNREAD, unread_kind, why_unread
from lit_semantic_peft.facts.formats.zsre import ZSRE

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        # A format whose fields contain another's comes first.
        *(COUNTERFACT, MQUAKE, KNOWEDIT, COUNTERFACT_FLAT, ZSRE, RIPPLE_EDITS),
        *(HALLUEDITBENCH, EDITATTACK, POPQA, SQUAD, ENTITY_QUESTIONS, TOFU, QUESTION_ANSWER, TRIPLES),
        *(PROMPT_COMPLETION, MESSAGES, SHAREGPT, ALPACA, QUERY_RESPONSE),
    )
}
"""The published formats by name, in the order in which they are tried."""


_GENERAL = (QUESTION_ANSWER, ALPACA, QUERY_RESPONSE)
"""Formats whose fields other kinds of files have among theirs."""


def recognise(names: Collection[str]) -> Format | None:
    """The format of records that have these fields.

    Args:
        names: Names of fields.

    Returns:
        The format, or None where no published format has such fields.

    Example:
        >>> recognise({"question", "answers"}).title
        'EntityQuestions'
        >>> recognise({"prompt", "target"}) is None
        True
    """
    found = next(
        (known for known in FORMATS.values() if any(needed <= set(names) for needed in known.recognised_by)), None
    )
    unread = unread_kind(names)
    return None if found in _GENERAL and unread is not None and not unread.is_vague else found


def format_tables() -> str:
    """The published formats, and the kinds of files that are none, as the Markdown tables of `docs/formats.md`."""
    lines = ["| format | `--format` | recognised by the fields |", "| --- | --- | --- |"]
    for known in FORMATS.values():
        sets = " or ".join(", ".join(f"`{name}`" for name in sorted(names)) for names in known.recognised_by)
        lines.append(f"| {known.title} | `{known.name}` | {sets} |")
    lines += ["", "| not read | why, and what to do |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {kind.title} | {kind.reason} |" for kind in UNREAD)])


__all__ = [
    "FORMATS",
    "UNREAD",
    "Dropped",
    "FieldError",
    "Format",
    "Noted",
    "Outcome",
    "Record",
    "are_templates",
    "format_tables",
    "recognise",
    "templates_of",
    "why_unread",
]
