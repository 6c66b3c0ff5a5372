"""RippleEdits (Cohen et al. 2023, arXiv 2307.12976): an edit as a sentence, and tests of what it entails."""

from collections.abc import Iterator

from lit_semantic_peft.facts.checks import normalize_text
from lit_semantic_peft.facts.formats.record import (
    NO_PLACE,
    Dropped,
    Format,
    Outcome,
    Record,
    build_fact,
    fields,
    other_answers,
)
from lit_semantic_peft.facts.schema import Probe

_NEIGHBOURS = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")  # the authors' page has the typo
_CONSEQUENCES = ("Logical_Generalization", "Compositionality_I", "Compositionality_II")
_SAME_FACT = "Subject_Aliasing"
_GROUPS = (*_NEIGHBOURS, *_CONSEQUENCES, _SAME_FACT)
_OF_TESTS = {
    "condition_queries": "what the model must know already for a test to count has no field",
    "test_condition": NO_PLACE,
}
_OF_QUERIES = dict.fromkeys(("query_type", "subject_id", "relation", "target_ids", "phrase"), NO_PLACE)
_LAST_WORDS = ("is", "are", "follows", "by")
"""The last words of the authors' templates: the answer comes next."""


def _read(record: Record) -> Iterator[Outcome]:
    """The edit is one sentence (`The gender of X is female.`): it is split into prompt and target.

    The split follows from the answers of the alias tests, which ask for the same target, else from the original
    sentence, which has the same beginning. Tests about aliases are paraphrases; a test's first answer is its target.
    """
    edit = record.record("edit")
    sentence = edit.text("prompt").removesuffix(".")
    original_name = next((name for name in ("original_fact", "previous_fact") if edit.has(name)), "")
    original = edit.record(original_name).text("prompt").removesuffix(".") if original_name else ""
    same = list(_queries(record, _SAME_FACT))
    prompt = _prompt_of(sentence, [answer for _, answers in same for answer in answers], original)
    if not prompt:
        yield Dropped("the sentence does not show where the answer begins")
        return
    target = sentence[len(prompt) :].strip()
    aliases = [answer for _, answers in same for answer in answers if _is_among(target, answers)]
    neighbours = [one for kind in _NEIGHBOURS for one in _queries(record, kind)]
    consequences = [(kind, *one) for kind in _CONSEQUENCES for one in _queries(record, kind)]
    yield from other_answers("neighborhood", [answers for _, answers in neighbours])
    yield from other_answers("portability", [answers for _, _, answers in consequences])
    tests = [test for kind in _GROUPS for test in record.records(kind)]
    queries = [query for test in tests for query in test.records("test_queries")]
    for left_out, objects in ((_OF_TESTS, tests), (_OF_QUERIES, queries)):
        for name, reason in left_out.items():
            holders = [one for one in objects if one.has(name)]
            if holders:
                yield Dropped(reason, name)
    yield from build_fact(
        RIPPLE_EDITS.title,
        prompt,
        target,
        relation=edit.optional_text("relation"),
        aliases=aliases,
        target_true=original[len(prompt) :].strip() if original.startswith(prompt) else "",
        paraphrases=[query for query, answers in same if _is_among(target, answers)],
        neighborhood=[_probe(query, answers) for query, answers in neighbours],
        portability=[
            _probe(query, answers, 2 if kind.startswith("Compositionality") else 1)
            for kind, query, answers in consequences
        ],
    )


def _queries(record: Record, kind: str) -> Iterator[tuple[str, list[str]]]:
    """The prompts of a group of tests with all accepted answers, in order."""
    for test in record.records(kind):
        for query in test.records("test_queries"):
            answers = [
                text
                for answer in query.records("answers")
                for text in (answer.optional_text("value"), *answer.texts("aliases"))
            ]
            yield query.text("prompt"), [text for text in answers if text]


def _probe(query: str, answers: list[str], hops: int = 1) -> Probe:
    return Probe(query, answers[0] if answers else "", hops)


def _is_among(target: str, answers: list[str]) -> bool:
    return normalize_text(target) in map(normalize_text, answers)


def _prompt_of(sentence: str, answers: list[str], original: str) -> str:
    """The sentence up to the beginning of the answer, or "" if that is unknown."""
    for answer in sorted(answers, key=len, reverse=True):
        if sentence.endswith(" " + answer):
            return sentence.removesuffix(answer).rstrip()
    words = sentence.split(" ")
    common = len(words) - 1
    if original:
        pairs = zip(words, original.split(" "), strict=False)
        common = next((index for index, (word, other) in enumerate(pairs) if word != other), common)
    lengths = [index for index, word in enumerate(words[:common], start=1) if word in _LAST_WORDS]
    # With the original sentence, the last of these words in the common part ends the template. Without it, the split
    # is only certain if there is exactly one such word.
    if not lengths or (not original and len(lengths) > 1):
        return ""
    return " ".join(words[: lengths[-1]])


RIPPLE_EDITS = Format(
    "ripple-edits",
    "RippleEdits",
    tuple(fields("edit", name) for name in ("example_type", *_GROUPS)),
    _read,
)
