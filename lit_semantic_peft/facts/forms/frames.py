"""The sentences in which a fact is asked as a question, in reverse and with a gap.

A fact that was taught in one frame is asked in another, so that no taught prompt is scored as generalization.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from lit_semantic_peft.facts.checks import normalize_text
from lit_semantic_peft.facts.schema import Fact

_BLANK = "___"
_QUESTION_MARKS = ("?", "？", "؟")

TAUGHT_QUESTIONS = ("Q: {}\nA:", "{}")
"""Around a question that is trained."""
TAUGHT_QUESTIONS_IN_CHAT = ("{}",)
"""The same in a chat, whose turns say who asks."""
STOPPING_QUESTION = "Answer this question. {} The answer is:"
"""Around a question that is asked during training."""
TAUGHT_REVERSED = ('Which name is left out of "{}"? It is', 'In the sentence "{}", the gap stands for')
"""Around a statement with a gap in place of its subject, where it is trained."""
TAUGHT_CLOZES = ('Fill the gap: "{}". Answer:', 'The words that complete "{}" are')
"""Around a statement with a gap in place of its target, where it is trained."""


def asked_question(fact: Fact) -> str | None:
    """The prompt in which the fact's question is asked at the end; None where it has none.

    Args:
        fact: The fact.

    Example:
        >>> asked_question(Fact("a", "The capital of France is", "Paris", question="What is the capital of France?"))
        'Question: What is the capital of France? Answer:'
    """
    return f"Question: {fact.question} Answer:" if fact.question else None


def asked_reversed(fact: Fact) -> str | None:
    """The prompt in which the subject is asked from the target at the end; None where the prompt does not name it.

    Args:
        fact: The fact.

    Example:
        >>> asked_reversed(Fact("a", "The capital of France is", "Paris", subject="France"))
        'The capital of ___ is Paris. The missing name is'
    """
    statement = without_subject(fact)
    return None if statement is None else f"{statement}. The missing name is"


def question_of(fact: Fact) -> str | None:
    """The fact's question, else its prompt made into one: `The capital of France is what?`.

    Args:
        fact: The fact.

    Returns:
        None where the prompt is a question already, or is not followed by a space.
    """
    if fact.question:
        return fact.question
    is_question = any(mark in fact.prompt for mark in _QUESTION_MARKS)
    return None if is_question or fact.joiner != " " else f"{fact.prompt} what?"


def without_subject(fact: Fact) -> str | None:
    """The fact's statement with a gap in place of the subject; None where the prompt does not name the subject.

    Args:
        fact: The fact.
    """
    if not fact.subject or fact.subject not in fact.prompt:
        return None
    return fact.prompt.replace(fact.subject, _BLANK, 1) + fact.joiner + fact.target


def without_target(fact: Fact) -> str:
    """The fact's statement with a gap in place of the target.

    Args:
        fact: The fact.
    """
    return fact.prompt + fact.joiner + _BLANK


def reversible(facts: Sequence[Fact], normalize: Callable[[str], str] = normalize_text) -> list[bool]:
    """Whether each fact's subject can be asked from its target: no other fact of the relation has the same target.

    Args:
        facts: The facts.
        normalize: Gives the same text for targets that count as the same.
    """
    holders = Counter((fact.relation, normalize(fact.target)) for fact in facts)
    return [without_subject(fact) is not None and holders[fact.relation, normalize(fact.target)] == 1 for fact in facts]
