"""Published kinds of files that are no facts as they stand: what they are, and what to do with them."""

from collections.abc import Collection
from dataclasses import dataclass

from lit_semantic_peft.facts.formats.record import fields


@dataclass(frozen=True, slots=True)
class Unread:
    """A kind of file that is not read.

    Attributes:
        title: Examples of it.
        recognised_by: Sets of fields; records that have all fields of any of them are of this kind.
        reason: Why it is not read, as a sentence.
        is_vague: Whether files of another kind may have such fields too.
    """

    title: str
    recognised_by: tuple[frozenset[str], ...]
    reason: str
    is_vague: bool = False


UNREAD: tuple[Unread, ...] = (
    Unread(
        "multiple choice (MMLU, ARC, HellaSwag, TruthfulQA)",
        (
            fields("question", "choices"),
            fields("ctx", "endings"),
            fields("question", "mc1_targets"),
            fields("question", "correct_answers"),
            fields("sentence", "option1", "option2"),
        ),
        "Which text is the answer stands in a number or a letter; write the text itself into `target`.",
    ),
    Unread(
        "preferences (DPO, RLHF)",
        (fields("chosen", "rejected"), fields("response_j", "response_k")),
        "Two answers are compared; a fact has one answer to learn. Map the better one to `target`.",
    ),
    Unread(
        "claims (FEVER, SNLI)",
        (fields("claim", "label"), fields("premise", "hypothesis")),
        "A label judges a sentence; nothing in the sentence is an answer to learn. Questions to be answered by yes or "
        "no belong into `yes_no` of a fact.",
    ),
    Unread(
        "running text (WikiText, C4, TinyStories)",
        (fields("text"),),
        "It does not show where an answer begins; cut each statement into `prompt` and `target`.",
        is_vague=True,
    ),
    Unread(
        "triples of ids (Wikidata, T-REx, FB15k)",
        (fields("head", "relation", "tail"), fields("subject", "predicate", "object"), fields("sub_uri", "obj_uri")),
        "A triple has no sentence; map `prompt` to one with its fields in braces: `The {relation} of {head} is`.",
    ),
    Unread(
        "a whole set in one object (SQuAD's own file)",
        (fields("version", "data"),),
        "Its questions stand nested in `data`; write one a line with `question` and `answers`, or load the set of the "
        "Hub.",
    ),
)
"""The kinds, in the order in which they are looked for."""


def unread_kind(names: Collection[str]) -> Unread | None:
    """The kind of records with these fields that is not read; None where there is none."""
    return next((kind for kind in UNREAD if any(needed <= set(names) for needed in kind.recognised_by)), None)


def why_unread(names: Collection[str]) -> str:
    """Why records with these fields are not read; "" where nothing is known of them.

    Args:
        names: Names of fields.

    Example:
        >>> why_unread({"text", "meta"}).split(":")[0]
        'They look like running text (WikiText, C4, TinyStories)'
    """
    found = unread_kind(names)
    return f"They look like {found.title}: {found.reason} " if found else ""
