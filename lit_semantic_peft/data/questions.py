"""What is asked at the end: each fact, its paraphrases, its neighbours, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

QuestionKind = Literal["fact", "paraphrase", "neighborhood", "portability", "prompt"]

ANSWER_MARGIN = 8
"""Tokens that a free answer may be longer than the longest accepted answer before it is cut."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt to answer freely.

    Attributes:
        number: Position among all questions.
        fact_index: Dense index of the fact it belongs to; -1 for a free prompt.
        kind: `fact` for the trained prompt itself, a probe's kind, or `prompt` for a free prompt.
        prompt: The text that is asked.
        accepted: Right answers, the target first; empty for a free prompt.
        prompt_ids: Token ids of the prompt.
        encoded: Prompt and target in tokens; None for a free prompt.
        max_new_tokens: Longest answer, in tokens.
    """

    number: int
    fact_index: int
    kind: QuestionKind
    prompt: str
    accepted: tuple[str, ...]
    prompt_ids: tuple[int, ...]
    encoded: EncodedFact | None
    max_new_tokens: int

    @property
    def target(self) -> str:
        """The expected answer, "" for a free prompt."""
        return self.accepted[0] if self.accepted else ""


def fact_questions(facts: Sequence[Fact], encoder: FactEncoder, with_probes: bool = True) -> list[Question]:
    """The questions of a set of facts, each fact followed by its probes.

    Args:
        facts: The facts; a fact's position is its `fact_index`.
        encoder: Spells them.
        with_probes: Whether paraphrases, neighbours and portability are asked too.

    Raises:
        InputError: If a prompt and its answer cannot be spelt; it names the fact, its file and its line.
    """
    questions: list[Question] = []

    def ask(fact_index: int, kind: QuestionKind, prompt: str, accepted: tuple[str, ...], joiner: str) -> None:
        try:
            encoded = encoder.encode(prompt, accepted[0], joiner)
        except InputError as error:
            fact = facts[fact_index]
            raise InputError(f"{fact.location or 'fact'}: fact {fact.id!r}: {kind} {prompt!r}: {error}") from error
        longest = max(
            [encoded.num_target_tokens, *(encoder.count_answer_tokens(alias, joiner) for alias in accepted[1:])]
        )
        questions.append(
            Question(
                number=len(questions),
                fact_index=fact_index,
                kind=kind,
                prompt=prompt,
                accepted=accepted,
                prompt_ids=encoded.prompt_ids,
                encoded=encoded,
                max_new_tokens=longest + ANSWER_MARGIN,
            )
        )

    for index, fact in enumerate(facts):
        ask(index, "fact", fact.prompt, fact.accepted_answers, fact.joiner)
        if not with_probes:
            continue
        for prompt in fact.paraphrases:
            ask(index, "paraphrase", prompt, fact.accepted_answers, fact.joiner)
        for probe in fact.neighborhood:
            ask(index, "neighborhood", probe.prompt, (probe.target,), fact.joiner)
        for probe in fact.portability:
            ask(index, "portability", probe.prompt, (probe.target,), fact.joiner)
    return questions


def prompt_questions(prompts: Sequence[str], encoder: FactEncoder, max_new_tokens: int) -> list[Question]:
    """Free prompts as questions without a right answer.

    Args:
        prompts: The texts.
        encoder: Spells them.
        max_new_tokens: Longest answer, in tokens.
    """
    return [
        Question(number, -1, "prompt", prompt, (), encoder.encode_prompt(prompt.rstrip()), None, max_new_tokens)
        for number, prompt in enumerate(prompts)
    ]
