"""MQuAKE (Zhong et al. 2023, arXiv 2305.14795): several edits a case, and questions that need all of them."""

from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import Format, Outcome, Record, build_fact, fields, question_prompt
from lit_semantic_peft.facts.schema import Probe, content_id


def _read(record: Record) -> Iterator[Outcome]:
    """One fact an edit, as a cloze; the multi-hop questions belong to the first edit and name the others as needed.

    The same edit stands in many cases. Facts are named by their content, so that a later case adds its questions to
    the fact that an earlier one gave.
    """
    edits = record.records("requested_rewrite")
    taught = [
        (edit, edit.text("prompt").replace("{}", edit.text("subject")).rstrip(), edit.record("target_new").text("str"))
        for edit in edits
    ]
    answer = record.optional_text("new_answer")
    hops = len(record.records("new_single_hops")) or len(record.records("single_hops")) or 2
    needs = tuple(content_id(prompt, target) for _, prompt, target in taught[1:])
    questions = [Probe(question_prompt(text), answer, hops, needs) for text in record.texts("questions")]
    for number, (edit, prompt, target) in enumerate(taught):
        question = edit.optional_text("question")
        yield from build_fact(
            MQUAKE.title,
            prompt,
            target,
            subject=edit.text("subject"),
            relation=edit.optional_text("relation_id"),
            target_true=edit.record("target_true").text("str") if edit.has("target_true") else "",
            paraphrases=[question_prompt(question)] if question else [],
            portability=questions if number == 0 else [],
            question=question,
        )


MQUAKE = Format(
    "mquake",
    "MQuAKE",
    (fields("requested_rewrite", "questions"),),
    _read,
    left_out={"new_answer_alias": "a probe has one answer; its aliases have no field"},
)
