"""Questions with answers: PopQA, EntityQuestions, TOFU and HalluEditBench."""

from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import (
    Format,
    Outcome,
    Record,
    build_fact,
    fields,
    question_prompt,
    relation_of_file,
)
from lit_semantic_peft.facts.schema import Probe

_HOPS = range(2, 7)


def _popqa(record: Record) -> Iterator[Outcome]:
    """The object is taught; all other possible answers are accepted."""
    question = record.text("question")
    answers = record.answers("possible_answers")
    number = record.optional_text("id")
    yield from build_fact(
        POPQA.title,
        question_prompt(question),
        record.optional_text("obj") or next(iter(answers), ""),
        fact_id=f"popqa-{number}" if number else "",
        subject=record.optional_text("subj"),
        relation=record.optional_text("prop"),
        aliases=answers,
        question=question,
    )


def _entity_questions(record: Record) -> Iterator[Outcome]:
    """The first answer is taught, the others are accepted; the relation is the name of the file (`P17.train.json`)."""
    question = record.text("question")
    answers = record.answers("answers")
    yield from build_fact(
        ENTITY_QUESTIONS.title,
        question_prompt(question),
        answers[0] if answers else "",
        relation=relation_of_file(record.file),
        aliases=answers,
        question=question,
    )


def _tofu(record: Record) -> Iterator[Outcome]:
    """The answer is taught as it stands, often a whole sentence; a paraphrased answer is accepted."""
    question = record.text("question")
    yield from build_fact(
        TOFU.title,
        question_prompt(question),
        record.text("answer"),
        aliases=record.texts("paraphrased_answer"),
        paraphrases=[question_prompt(text) for text in record.texts("paraphrased_question")],
        question=question,
    )


def _hallueditbench(record: Record) -> Iterator[Outcome]:
    """The true object is taught; questions of two to six hops and those to be answered by yes or no follow from it."""
    question = record.text("question")
    follows = [
        Probe(question_prompt(record.text(f"question_{hops}hop")), record.optional_text(f"answer_{hops}hop"), hops)
        for hops in _HOPS
        if record.has(f"question_{hops}hop")
    ]
    follows += [
        Probe(question_prompt(text), answer)
        for name, answer in (("yes_question", "Yes"), ("no_question", "No"))
        for text in record.texts(name)
    ]
    yield from build_fact(
        HALLUEDITBENCH.title,
        question_prompt(question),
        record.text("object"),
        subject=record.text("subject"),
        relation=record.optional_text("relation"),
        paraphrases=[question_prompt(text) for text in record.texts("paraphrased_question")],
        portability=follows,
        question=question,
    )


POPQA = Format(
    "popqa",
    "PopQA",
    (fields("question", "possible_answers"), fields("question", "subj", "prop", "obj")),
    _popqa,
)

ENTITY_QUESTIONS = Format("entity-questions", "EntityQuestions", (fields("question", "answers"),), _entity_questions)

TOFU = Format(
    "tofu",
    "TOFU",
    (fields("question", "answer"),),
    _tofu,
    left_out={"perturbed_answer": "wrong answers to choose from have no field in the contract"},
)

HALLUEDITBENCH = Format(
    "hallueditbench",
    "HalluEditBench",
    (fields("subject", "relation", "object", "question"),),
    _hallueditbench,
    left_out={
        "locality_question": "no answer is given",
        "reversed_relation_question": "its answer, the subject, is one of many",
        "multiple_choice_with_letters": "wrong answers to choose from have no field in the contract",
    },
)
