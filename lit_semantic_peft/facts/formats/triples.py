"""Triples with templates: LAMA (Petroni et al. 2019) and ParaRel (Elazar et al. 2021)."""

import re
from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import (
    Dropped,
    FieldError,
    Format,
    Outcome,
    Record,
    build_fact,
    fields,
    relation_of_file,
)

_SUBJECT, _OBJECT, _MASK = "[X]", "[Y]", "[MASK]"
_NOTHING_BUT_PUNCTUATION = re.compile(r"[\s.,;:!]*")


def _read(record: Record) -> Iterator[Outcome]:
    """Each template that ends with the answer is a prompt: the first is taught, the others are paraphrases.

    A template stands in the record (the Hub's LAMA) or in a file of its own (`relations.jsonl`, ParaRel's patterns),
    which must be read together with the triples. Without one, a sentence with `[MASK]` at its end will do.
    """
    subject = record.text("sub_label")
    relation = record.optional_text("predicate_id") or record.optional_text("pred") or relation_of_file(record.file)
    masked = [text.replace(_MASK, _OBJECT) for name in _MASKED for text in record.texts(name)]
    templates = record.texts("template") or list(record.templates.get(relation, ())) or masked
    prompts = [prompt for prompt in (_prompt_of(template, subject) for template in templates) if prompt]
    if not prompts:
        yield Dropped(
            "no template asks for the answer at its end"
            if templates
            else "no template: read the file of templates as well, for example by naming the folder that holds both"
        )
        return
    yield from build_fact(
        TRIPLES.title,
        prompts[0],
        record.text("obj_label"),
        subject=subject,
        relation=relation,
        paraphrases=prompts[1:],
    )


_MASKED = ("masked_sentence", "masked_sentences")


def _prompt_of(template: str, subject: str) -> str:
    before, answer, after = template.partition(_OBJECT)
    if not answer or not _NOTHING_BUT_PUNCTUATION.fullmatch(after):
        return ""
    return " ".join(before.replace(_SUBJECT, subject).split())


def templates_of(record: Record) -> tuple[str, str]:
    """Relation and template of a record of `relations.jsonl` or of a file of ParaRel's patterns.

    Raises:
        FieldError: If the record, and for a pattern the name of its file, does not say both.
    """
    if record.has("pattern"):
        relation = relation_of_file(record.file)
        if not relation:
            raise FieldError("pattern", "a file that is named by its relation, such as P19.jsonl", record.file)
        return relation, record.text("pattern")
    return record.text("relation"), record.text("template")


def are_templates(names: frozenset[str]) -> bool:
    """Whether records with these fields are templates and no facts."""
    return fields("relation", "template") <= names or "pattern" in names


TRIPLES = Format("triples", "LAMA/ParaRel", (fields("sub_label", "obj_label"),), _read)
