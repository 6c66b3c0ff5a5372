"""A fact in other words, as a language model writes it: the prompt that asks for it, and what of the answer is kept."""

import re
from collections import Counter
from collections.abc import Sequence

from lit_semantic_peft.facts.checks import find_near_duplicates
from lit_semantic_peft.facts.schema import Fact, Form

RESTATEMENTS_VERSION = 1
"""Raised whenever the prompt changes."""

NEAR_DUPLICATE = 0.9
"""Share of words in common from which on two sentences count as one, see `find_near_duplicates`."""

_FEW_SHOT = """\
Each sentence is written again in other words. Both end with the same words.

Sentence: The novel Ulysses was written by James Joyce.
In other words: The author of the novel Ulysses is James Joyce.

Sentence: The headquarters of Volvo are in the city of Gothenburg.
In other words: Volvo is a company that is run from Gothenburg.

Sentence: Marie Curie was born in the city of Warsaw.
In other words: The birthplace of Marie Curie is Warsaw.

Sentence: {statement}.
In other words:"""
_QUOTES = "\"'“”"
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")


def restatement_prompt(fact: Fact) -> str:
    """The prompt after which a causal language model writes the fact in other words.

    Args:
        fact: The fact.
    """
    return _FEW_SHOT.format(statement=f"{fact.prompt}{fact.joiner}{fact.target}")


def kept_restatements(fact: Fact, texts: Sequence[str], num_forms: int) -> tuple[list[Form], Counter[str]]:
    """The restatements that state the fact, each cut where its target begins.

    Args:
        fact: With a subject.
        texts: What the model wrote after `restatement_prompt`.
        num_forms: Most forms to keep.

    Returns:
        The forms, in the order of the texts, and how many texts were left out for each reason.
    """
    known = [Fact("", prompt, fact.target) for prompt in (fact.prompt, *fact.paraphrases)]
    known += [Fact("", form.prompt, form.target) for form in fact.forms]
    forms: list[Form] = []
    reasons: Counter[str] = Counter()
    for text in texts:
        form = _form_of(fact, text)
        if isinstance(form, str):
            reasons[form] += 1
            continue
        statement = Fact("", form.prompt, form.target)
        pairs = find_near_duplicates([*known, statement], NEAR_DUPLICATE)
        if any(pair.second is statement for pair in pairs):
            reasons["nearly the same as the fact, a paraphrase or an earlier form"] += 1
        elif len(forms) == num_forms:
            reasons["more than were asked for"] += 1
        else:
            forms.append(form)
            known.append(statement)
    return forms, reasons


def _form_of(fact: Fact, text: str) -> Form | str:
    """The form in a text, or why there is none."""
    sentence = text.strip()
    if not sentence:
        return "nothing was written"
    end = _sentence_end(sentence, fact)
    sentence = sentence[:end].strip().rstrip(".!?")
    if not _positions(fact.subject, sentence):
        return "the subject does not stand in it"
    targets = _positions(fact.target, sentence)
    if not targets:
        return "the target does not stand in it"
    start, stop = targets[-1]
    if sentence[stop:].strip(f"{_QUOTES} "):
        return "it does not end with the target"
    prompt = sentence[:start].rstrip(f"{_QUOTES} ")
    if not _positions(fact.subject, prompt):
        return "the subject does not stand before the target"
    return Form(prompt, fact.target, fact.joiner)


def _sentence_end(text: str, fact: Fact) -> int:
    """Where the first sentence ends; a full stop inside of subject or target (`St. John's`) ends none."""
    inside = [span for name in (fact.subject, fact.target) for span in _positions(name, text)]
    for found in _SENTENCE_END.finditer(text):
        if not any(start <= found.start() < stop for start, stop in inside):
            return found.start()
    return len(text)


def _positions(name: str, text: str) -> list[tuple[int, int]]:
    """Where a name stands in a text as whole words."""
    return [found.span() for found in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
