"""Published formats: each a pure function from a record to facts, or to the reason why it is left out."""

from collections.abc import Collection

from lit_semantic_peft.facts.formats.conversations import MESSAGES, PROMPT_COMPLETION
from lit_semantic_peft.facts.formats.counterfact import COUNTERFACT, COUNTERFACT_FLAT
from lit_semantic_peft.facts.formats.knowedit import KNOWEDIT
from lit_semantic_peft.facts.formats.mquake import MQUAKE
from lit_semantic_peft.facts.formats.questions import ENTITY_QUESTIONS, HALLUEDITBENCH, POPQA, TOFU
from lit_semantic_peft.facts.formats.record import Dropped, FieldError, Format, Outcome, Record
from lit_semantic_peft.facts.formats.ripple_edits import RIPPLE_EDITS
from lit_semantic_peft.facts.formats.triples import TRIPLES, are_templates, templates_of
from lit_semantic_peft.facts.formats.zsre import ZSRE

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        # A format whose fields contain another's comes first.
        *(COUNTERFACT, MQUAKE, KNOWEDIT, COUNTERFACT_FLAT, ZSRE, RIPPLE_EDITS),
        *(HALLUEDITBENCH, POPQA, ENTITY_QUESTIONS, TOFU, TRIPLES, PROMPT_COMPLETION, MESSAGES),
    )
}
"""The published formats by name, in the order in which they are tried."""


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
    return next(
        (known for known in FORMATS.values() if any(needed <= set(names) for needed in known.recognised_by)), None
    )


__all__ = [
    "FORMATS",
    "Dropped",
    "FieldError",
    "Format",
    "Outcome",
    "Record",
    "are_templates",
    "recognise",
    "templates_of",
]
