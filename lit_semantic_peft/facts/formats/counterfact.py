"""CounterFact (Meng et al. 2022, arXiv 2202.05262): nested as ROME ships it, flat as EasyEdit does."""

from collections.abc import Iterator

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


def _nested(record: Record) -> Iterator[Outcome]:
    """The prompt is a cloze (`The mother tongue of {} is`); its neighbours have the old target as their answer."""
    rewrite = record.record("requested_rewrite")
    subject = rewrite.text("subject")
    old = rewrite.record("target_true").text("str") if rewrite.has("target_true") else ""
    case = record.optional_text("case_id")
    yield from build_fact(
        COUNTERFACT.title,
        rewrite.text("prompt").replace("{}", subject),
        rewrite.record("target_new").text("str"),
        fact_id=f"counterfact-{case}" if case else "",
        subject=subject,
        relation=rewrite.optional_text("relation_id"),
        target_true=old,
        paraphrases=record.texts("paraphrase_prompts"),
        neighborhood=[Probe(prompt, old) for prompt in record.texts("neighborhood_prompts")],
    )


def _flat(record: Record) -> Iterator[Outcome]:
    """One paraphrase and one neighbour a record; questions are framed, clozes are taught as they stand."""
    prompt, subject = record.text("prompt"), record.optional_text("subject")
    case = record.optional_text("case_id")
    neighbour = record.optional_text("locality_prompt")
    before, neighbour_answers = record.answers("ground_truth"), record.answers("locality_ground_truth")
    yield from other_answers("target_true", [before])
    yield from other_answers("neighborhood", [neighbour_answers])
    yield from build_fact(
        COUNTERFACT_FLAT.title,
        as_prompt(prompt),
        record.text("target_new"),
        fact_id=f"counterfact-{case}" if case else "",
        subject=subject,
        relation=record.optional_text("relation_id") or template_of(prompt, subject),
        target_true=next(iter(before), ""),
        paraphrases=[as_prompt(text) for text in record.texts("rephrase_prompt")],
        neighborhood=[Probe(as_prompt(neighbour), answer) for answer in neighbour_answers[:1]] if neighbour else [],
        question=prompt if is_question(prompt) else "",
    )


COUNTERFACT = Format(
    "counterfact",
    "CounterFact",
    (fields("requested_rewrite", "paraphrase_prompts"), fields("requested_rewrite", "neighborhood_prompts")),
    _nested,
    left_out={
        "generation_prompts": "openings for free text, which has no answer to compare with",
        "attribute_prompts": "their answer is the new target itself, so they cannot show a side effect",
    },
)

COUNTERFACT_FLAT = Format(
    "counterfact-flat",
    "CounterFact (EasyEdit)",
    (
        fields("prompt", "target_new", "rephrase_prompt", "locality_prompt"),
        fields("prompt", "target_new", "ground_truth", "locality_prompt"),
    ),
    _flat,
)
