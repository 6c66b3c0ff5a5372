"""KnowEdit (Zhang et al. 2024, arXiv 2401.01286): wiki_recent, wiki_counterfact, ZsRE and WikiBio."""

from collections.abc import Iterator

from lit_semantic_peft.facts.checks import normalize_text
from lit_semantic_peft.facts.formats.record import (
    Format,
    Outcome,
    Record,
    as_prompt,
    build_fact,
    fields,
    is_question,
    other_answers,
    template_of,
)
from lit_semantic_peft.facts.schema import Probe

_TWO_HOPS = "Reasoning"
_SAME_FACT = "Subject_Aliasing"


def _read(record: Record) -> Iterator[Outcome]:
    """Prompts are clozes, in ZsRE questions; WikiBio teaches a sentence that continues a passage.

    The same fact about another name of its subject is a paraphrase; everything below `locality` is a neighbour.
    """
    prompt = record.text("text" if record.has("text") else "prompt")
    target = _first(record.answers("labels" if record.has("labels") else "target_new"))
    subject = record.optional_text("concept" if record.has("concept") else "subject")
    paraphrases = record.texts("rephrase") + record.texts("rephrase_prompt")
    portability: list[Probe] = []
    consequences, neighbours = list(_tests(record, "portability")), list(_tests(record, "locality"))
    for kind, question, answers in consequences:
        if kind == _SAME_FACT and normalize_text(_first(answers)) == normalize_text(target):
            paraphrases.append(question)
        else:
            portability.append(Probe(question, _first(answers), hops=2 if kind == _TWO_HOPS else 1))
    before = record.answers("ground_truth")
    yield from other_answers("target_true", [before])
    yield from other_answers("portability", [answers for _, _, answers in consequences])
    yield from other_answers("neighborhood", [answers for _, _, answers in neighbours])
    yield from build_fact(
        KNOWEDIT.title,
        as_prompt(prompt),
        target,
        subject=subject,
        relation=template_of(prompt, subject) if len(prompt) < _LONGEST_TEMPLATE else "",
        target_true=_first(before),
        paraphrases=[as_prompt(text) for text in paraphrases],
        neighborhood=[Probe(question, _first(answers)) for _, question, answers in neighbours],
        portability=portability,
        question=prompt if is_question(prompt) else "",
    )


_LONGEST_TEMPLATE = 200
"""A longer prompt is a passage, not a template that others share."""


def _first(answers: list[str]) -> str:
    return answers[0] if answers else ""


def _tests(record: Record, name: str) -> Iterator[tuple[str, str, list[str]]]:
    """Kind, prompt and accepted answers of the tests in a field."""
    if not record.has(name):
        return
    groups = record.record(name)
    for kind in groups.fields:
        for item in groups.records(kind):
            yield kind, as_prompt(item.text("prompt")), item.answers("ground_truth")


KNOWEDIT = Format(
    "knowedit",
    "KnowEdit",
    (
        fields("prompt", "target_new", "locality"),
        fields("prompt", "target_new", "portability"),
        fields("text", "labels", "locality"),
        fields("text", "labels", "concept"),
    ),
    _read,
)
