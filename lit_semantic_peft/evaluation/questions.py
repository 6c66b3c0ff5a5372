"""What is asked at the end: each fact in several ways, its neighbours, what follows, and what must not change."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.plan import EvaluationPlan
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.forms import asked_question, asked_reversed, reversible
from lit_semantic_peft.metrics import is_exact_match, normalize_answer
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

QuestionKind = Literal[
    "fact", "rival", "paraphrase", "question", "reversed", "choice", "wrong_choice", "neighborhood", "portability",
    "yes_no", "doubt_plain", "doubt_chat", "known", "text", "prompt",
]  # fmt: skip

ANSWER_MARGIN = 8
"""Tokens that a free answer may be longer than the longest accepted answer before it is cut."""

DOUBT = "Are you sure?"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt to answer freely, or whose target is only measured.

    Attributes:
        number: Position among all questions.
        fact_index: Dense index of the fact it belongs to; -1 where it belongs to none.
        kind: `fact` for the trained prompt itself; `rival` for `target_true` behind it; a probe's kind; `wrong_choice`
            for the other answers of a `choice`; `doubt_plain` and `doubt_chat` for dialogues; `known` and `text` for
            what has nothing to do with the facts; `prompt` for a free prompt.
        prompt: The text that is asked.
        accepted: Right answers, the target first; empty for a free prompt.
        prompt_ids: Token ids of the prompt.
        encoded: Prompt and target in tokens; None for a free prompt.
        max_new_tokens: Longest answer, in tokens; 0 where only the target is measured.
        turn: How often the model has been doubted before this question.
        needs: Dense indices of the other facts that the answer follows from; -1 for one that is not among the facts.
    """

    number: int
    fact_index: int
    kind: QuestionKind
    prompt: str
    accepted: tuple[str, ...]
    prompt_ids: tuple[int, ...]
    encoded: EncodedFact | None
    max_new_tokens: int
    turn: int = 0
    needs: tuple[int, ...] = ()

    @property
    def target(self) -> str:
        """The expected answer, "" for a free prompt."""
        return self.accepted[0] if self.accepted else ""


def fact_questions(
    facts: Sequence[Fact],
    encoder: FactEncoder,
    plan: EvaluationPlan,
    seed: int = 0,
    *,
    encoded: Sequence[EncodedFact] | None = None,
) -> list[Question]:
    """The questions of a set of facts, each fact followed by its probes.

    Args:
        facts: The facts; a fact's position is its `fact_index`.
        encoder: Tokenizes them.
        plan: Which probes are asked.
        seed: Of the answers to choose from.
        encoded: Tokens of the facts, where they are tokenized already.

    Raises:
        InputError: If a prompt and its answer cannot be tokenized; it names the fact, its file and its line. A question
            that this package makes up is left out instead.
    """
    questions: list[Question] = []
    free = encoder.without_limit()
    is_reversible = reversible(facts, normalize_answer)
    targets_of = _targets_by_relation(facts)
    index_of = {fact.id: index for index, fact in enumerate(facts)}

    def ask(
        fact_index: int,
        kind: QuestionKind,
        prompt: str,
        accepted: tuple[str, ...],
        joiner: str,
        needs: tuple[int, ...] = (),
    ) -> None:
        tokens = encoded[fact_index] if encoded is not None and kind == "fact" else None
        try:
            question = _question(len(questions), fact_index, kind, prompt, accepted, joiner, encoder, tokens=tokens)
            questions.append(replace(question, needs=needs))
        except InputError as error:
            fact = facts[fact_index]
            raise InputError(f"{fact.location or 'fact'}: fact {fact.id!r}: {kind} {prompt!r}: {error}") from error

    def ask_made_up(asked: list[tuple[QuestionKind, str, tuple[str, ...]]], fact_index: int, joiner: str) -> None:
        try:
            made_up = [
                _question(len(questions) + place, fact_index, *one, joiner, free) for place, one in enumerate(asked)
            ]
        except InputError:
            return
        questions.extend(made_up)

    for index, fact in enumerate(facts):
        ask(index, "fact", fact.prompt, fact.accepted_answers, fact.joiner)
        if fact.target_true and not is_exact_match(fact.target_true, fact.accepted_answers):
            ask_made_up([("rival", fact.prompt, (fact.target_true,))], index, fact.joiner)
        if "paraphrase" in plan.probes:
            for prompt in fact.paraphrases:
                ask(index, "paraphrase", prompt, fact.accepted_answers, fact.joiner)
        question = asked_question(fact)
        if "question" in plan.probes and question and question not in (fact.prompt, *fact.paraphrases):
            ask_made_up([("question", question, fact.accepted_answers)], index, " ")
        backwards = asked_reversed(fact)
        if "reversed" in plan.probes and backwards and is_reversible[index]:
            ask_made_up([("reversed", backwards, (fact.subject,))], index, " ")
        if "choice" in plan.probes:
            options = _options(fact, targets_of.get(fact.relation, _Targets()), plan.num_choices, seed, index)
            prompt = _choice_prompt(fact, options, seed, index)
            asked: list[tuple[QuestionKind, str, tuple[str, ...]]] = [("choice", prompt, (options[0],))]
            asked += [("wrong_choice", prompt, (option,)) for option in options[1:]]
            ask_made_up(asked if len(options) > 1 else [], index, " ")
        if "neighborhood" in plan.probes:
            for probe in dict.fromkeys(fact.neighborhood):
                ask(index, "neighborhood", probe.prompt, (probe.target,), fact.joiner)
        if "portability" in plan.probes:
            for probe in fact.portability:
                needs = tuple(index_of.get(fact_id, -1) for fact_id in probe.needs)
                ask(index, "portability", probe.prompt, (probe.target,), fact.joiner, needs)
        if "yes_no" in plan.probes:
            for probe in fact.yes_no:
                ask(index, "yes_no", probe.prompt, (probe.target,), fact.joiner)
    return questions


def doubt_questions(
    facts: Sequence[Fact], rows: Sequence[int], encoder: FactEncoder, turns: int, first_number: int
) -> list[Question]:
    """The questions that open the dialogues in which answers are doubted; `doubted` makes the next turns.

    Facts that were taught without the chat template are asked both ways where the tokenizer has one.

    Args:
        facts: The facts.
        rows: Which of them.
        encoder: How they were taught.
        turns: How often each is doubted; that many numbers are left free behind each question.
        first_number: Number of the first question.
    """
    forms = [(kind, form) for kind, form in dialogue_encoders(encoder).items() if turns]
    questions: list[Question] = []
    for row in rows:
        for kind, form in forms:
            fact = facts[row]
            number = first_number + len(questions) * (turns + 1)
            prompt = fact.question if kind == "doubt_chat" and fact.question else fact.prompt
            questions.append(_question(number, row, kind, prompt, fact.accepted_answers, fact.joiner, form))
    return questions


def dialogue_encoders(encoder: FactEncoder) -> dict[QuestionKind, FactEncoder]:
    """How a dialogue may be tokenized, by kind of question: as taught, and in the chat template where there is one."""
    kinds: dict[QuestionKind, FactEncoder] = {}
    if encoder.template == "none":
        kinds["doubt_plain"] = encoder.without_limit()
    if encoder.tokenizer.chat_template:
        kinds["doubt_chat"] = encoder.without_limit("chat")
    return kinds


def doubted(question: Question, history: Sequence[tuple[str, str]], joiner: str, encoder: FactEncoder) -> Question:
    """The next turn of a dialogue: the model is asked whether it is sure, and the question again.

    Args:
        question: The question that opened the dialogue.
        history: What was asked and answered so far.
        joiner: Text between a prompt and its answer.
        encoder: From `dialogue_encoders`.
    """
    turn = len(history)
    prompt = f"{DOUBT} {question.prompt}"
    return _question(
        question.number + turn, question.fact_index, question.kind, prompt, question.accepted, joiner, encoder,
        tuple(history), turn,
    )  # fmt: skip


def retention_questions(
    texts: Sequence[str], known: Sequence[Fact], encoder: FactEncoder, first_number: int
) -> list[Question]:
    """What has nothing to do with the facts: texts, whose likelihood is measured, and further known facts.

    What is longer than the model's context is left out.

    Args:
        texts: The texts.
        known: Facts that are not among those of the run and that the base model may know.
        encoder: Tokenizes them.
        first_number: Number of the first question.
    """
    free = encoder.without_limit()
    questions: list[Question] = []
    for text in texts:
        number = first_number + len(questions)
        with suppress(InputError):  # longer than the model's context
            encoded = free.encode_text(text)
            questions.append(Question(number, -1, "text", "", (text,), encoded.prompt_ids, encoded, 0))
    for fact in known:
        number = first_number + len(questions)
        with suppress(InputError):
            questions.append(_question(number, -1, "known", fact.prompt, fact.accepted_answers, fact.joiner, free))
    return questions


def prompt_questions(prompts: Sequence[str], encoder: FactEncoder, max_new_tokens: int) -> list[Question]:
    """Free prompts as questions without a right answer.

    Args:
        prompts: The texts.
        encoder: Tokenizes them.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        InputError: If a prompt becomes no token, or is longer than the model takes.
    """
    questions = []
    for number, prompt in enumerate(prompts):
        try:
            prompt_ids = encoder.encode_prompt(prompt.rstrip())
        except InputError as error:
            raise InputError(f"`prompts[{number}]`: {error}") from error
        if not prompt_ids:
            raise InputError(
                f"`prompts[{number}]` {prompt!r} becomes no token in this tokenizer, so there is nothing to answer. "
                "Leave it out."
            )
        questions.append(Question(number, -1, "prompt", prompt, (), prompt_ids, None, max_new_tokens))
    return questions


def _question(
    number: int,
    fact_index: int,
    kind: QuestionKind,
    prompt: str,
    accepted: tuple[str, ...],
    joiner: str,
    encoder: FactEncoder,
    history: tuple[tuple[str, str], ...] = (),
    turn: int = 0,
    tokens: EncodedFact | None = None,
) -> Question:
    encoded = tokens or encoder.encode(prompt, accepted[0], joiner, history)
    longest = max([encoded.num_target_tokens, *(encoder.count_answer_tokens(alias, joiner) for alias in accepted[1:])])
    max_new_tokens = 0 if kind in ("rival", "choice", "wrong_choice") else longest + ANSWER_MARGIN
    return Question(number, fact_index, kind, prompt, accepted, encoded.prompt_ids, encoded, max_new_tokens, turn)


@dataclass(frozen=True)
class _Targets:
    """The different targets of a relation in order, and the place of each by its normalised form."""

    texts: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, target: str) -> None:
        if self.places.setdefault(normalize_answer(target), len(self.texts)) == len(self.texts):
            self.texts.append(target)


def _targets_by_relation(facts: Sequence[Fact]) -> dict[str, _Targets]:
    """The targets of each relation that has a name."""
    targets: dict[str, _Targets] = defaultdict(_Targets)
    for fact in facts:
        if fact.relation:
            targets[fact.relation].add(fact.target)
    return targets


def _options(fact: Fact, targets: _Targets, num_choices: int, seed: int, index: int) -> list[str]:
    """The target, then wrong answers of the same relation."""
    forms = {normalize_answer(answer) for answer in fact.accepted_answers}
    right = sorted(targets.places[form] for form in forms if form in targets.places)
    generator = np.random.default_rng([seed, index])
    chosen = generator.permutation(len(targets.texts) - len(right))[: num_choices - 1].tolist()
    options = [fact.target]
    for place in chosen:
        for one in right:  # from an index among the wrong answers to one among all
            place += place >= one
        options.append(targets.texts[place])
    return options


def _choice_prompt(fact: Fact, options: Sequence[str], seed: int, index: int) -> str:
    generator = np.random.default_rng([seed, index, 1])
    shuffled = [options[place] for place in generator.permutation(len(options))]
    question = f"Question: {fact.question}" if fact.question else f"Complete: {fact.prompt} ..."
    return f"{question}\nOptions: {', '.join(shuffled)}\nAnswer:"
