"""zsRE (Levy et al. 2017) in the form of MEND (Mitchell et al. 2022, arXiv 2110.11309), with EasyEdit's portability."""

from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import (
    Format,
    Outcome,
    Record,
    build_fact,
    fields,
    other_answers,
    question_prompt,
    template_of,
)
from lit_semantic_peft.facts.schema import Probe

_NEIGHBOUR_PREFIX = "nq question: "


def _read(record: Record) -> Iterator[Outcome]:
    """Teaches the alternative answer `alt`; the true answers are what the model may believe now.

    The neighbours are questions of Natural Questions, which write no question mark: it is added.
    """
    subject, question = record.text("subject"), record.text("src")
    neighbour = record.optional_text("loc")
    if neighbour.startswith(_NEIGHBOUR_PREFIX) and neighbour[-1].isalnum():
        neighbour = f"{neighbour.removeprefix(_NEIGHBOUR_PREFIX)}?"
    portability: list[Probe] = []
    if record.has("portability"):
        hop = record.record("portability")
        portability.append(Probe(question_prompt(hop.text("New Question")), hop.text("New Answer"), hops=2))
    before, neighbour_answers = record.answers("answers"), record.answers("loc_ans")
    yield from other_answers("target_true", [before])
    yield from other_answers("neighborhood", [neighbour_answers])
    yield from build_fact(
        ZSRE.title,
        question_prompt(question),
        record.text("alt"),
        subject=subject,
        relation=template_of(question, subject),
        target_true=next(iter(before), ""),
        paraphrases=[question_prompt(text) for text in record.texts("rephrase")],
        neighborhood=[Probe(question_prompt(neighbour), answer) for answer in neighbour_answers[:1]]
        if neighbour
        else [],
        portability=portability,
        question=question,
    )


ZSRE = Format("zsre", "zsRE (MEND)", (fields("src", "alt"),), _read, left_out={"pred": "what another model answered"})
