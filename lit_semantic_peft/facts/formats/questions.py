"""Questions with answers: PopQA, EntityQuestions, SQuAD, TOFU, HalluEditBench, EditAttack, and plain ones (GSM8K)."""

from collections.abc import Iterator

from lit_semantic_peft.facts.formats.record import (
    Dropped,
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
    answers = record.encoded_answers("possible_answers")
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


def _squad(record: Record) -> Iterator[Outcome]:
    """The first answer is taught, the others are accepted; the passage is not part of the prompt."""
    question, number = record.text("question"), record.optional_text("id")
    answers = record.record("answers").answers("text")
    yield from build_fact(
        SQUAD.title,
        question_prompt(question),
        answers[0] if answers else "",
        fact_id=f"squad-{number}" if number else "",
        aliases=answers,
        question=question,
    )


def _question_answer(record: Record) -> Iterator[Outcome]:
    """The answer is taught as it stands; of a solution as in GSM8K what follows its mark `####`."""
    question = record.text("question")
    steps, mark, final = record.text("answer").rpartition(_FINAL_ANSWER)
    if steps.strip():
        yield Dropped(f"the steps of a solution before `{_FINAL_ANSWER.strip()}`", "answer")
    yield from build_fact(
        GSM8K_TITLE if mark else QUESTION_ANSWER.title, question_prompt(question), final, question=question
    )


_FINAL_ANSWER = "#### "
GSM8K_TITLE = "GSM8K"


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
    """The true object is taught; questions of two to six hops follow from it."""
    question = record.text("question")
    follows = [
        Probe(question_prompt(record.text(f"question_{hops}hop")), record.optional_text(f"answer_{hops}hop"), hops)
        for hops in _HOPS
        if record.has(f"question_{hops}hop")
    ]
    yes_no = [
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
        yes_no=yes_no,
        question=question,
    )


def _edit_attack(record: Record) -> Iterator[Outcome]:
    """The false target is taught, or looked for in an audit; the question about the subject by another name follows."""
    question, target = record.text("questions"), record.text("targets")
    yield from build_fact(
        EDITATTACK.title,
        question_prompt(question),
        target,
        subject=record.text("subjects"),
        paraphrases=[question_prompt(text) for text in record.texts("paraphrased_questions")],
        portability=[Probe(question_prompt(text), target) for text in record.texts("portability_questions")],
        question=question,
    )


POPQA = Format(
    "popqa",
    "PopQA",
    (fields("question", "possible_answers"), fields("question", "subj", "prop", "obj")),
    _popqa,
)

ENTITY_QUESTIONS = Format("entity-questions", "EntityQuestions", (fields("question", "answers"),), _entity_questions)

SQUAD = Format(
    "squad",
    "SQuAD",
    (fields("question", "answers", "context"),),
    _squad,
    left_out={
        "context": "the passage that holds the answer is no part of a fact; where the question needs it, "
        "`convert --columns` joins it into `prompt`",
        "answers.answer_start": "a place in the passage",
    },
)

QUESTION_ANSWER = Format("question-answer", "question and answer", (fields("question", "answer"),), _question_answer)

TOFU = Format(
    "tofu",
    "TOFU",
    (fields("question", "answer", "paraphrased_question"), fields("question", "answer", "perturbed_answer")),
    _tofu,
    left_out={"perturbed_answer": "wrong answers to choose from have no field in the contract"},
)

EDITATTACK = Format(
    "editattack", "EditAttack (misinformation)", (fields("subjects", "questions", "targets"),), _edit_attack
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
