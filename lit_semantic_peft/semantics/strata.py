"""How well the base model already knows a fact: the four strata of SliCK, and a filter by them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.metrics import starts_with_answer
from lit_semantic_peft.models.generation import greedy_answers
from lit_semantic_peft.models.sampling import Sampling, sampled_answers
from lit_semantic_peft.semantics.features import Feature, ScoringContext
from lit_semantic_peft.semantics.filters import FactFilter, Selection
from lit_semantic_peft.semantics.table import FloatArray, ScoredFacts

Stratum = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]

STRATA: tuple[Stratum, ...] = get_args(Stratum)
"""From known to unknown."""

_REASON = {
    "HighlyKnown": "highly_known",
    "MaybeKnown": "maybe_known",
    "WeaklyKnown": "weakly_known",
    "Unknown": "unknown",
}


class Strata(Feature):
    """Shares of correct answers of the base model, `(n, 2)` in [0, 1]: greedy, and sampled.

    A fact is asked with up to `num_prompts` prompts: its own, its paraphrases, and then few-shot prompts: its own after
    `num_shots` other facts as examples. Examples are of the same relation if there are enough, and different in each
    prompt, sampled by `seed` and the fact's id. A prompt that is longer than the model takes is left out. An answer is
    correct if it begins with an accepted one, as in `KnownFilter`. Source: SliCK (Gekhman et al. 2024, arXiv
    2405.05904), which asks with ten four-shot prompts and samples sixteen answers at temperature 0.5. Cost:
    `num_prompts` · (1 + `num_samples`) short generations per fact.

    Args:
        num_prompts: Prompts per fact, ≥ 1.
        num_shots: Examples in a few-shot prompt; 0: zero-shot prompts only.
        num_samples: Sampled answers per prompt; 0: none, and no fact is then `WeaklyKnown`.
        temperature: Temperature of the samples.
        seed: Seed of examples and samples.

    Raises:
        InputError: If a setting is out of its range.

    Example:
        >>> strata_of(np.array([[1.0, 0.5], [0.25, 0.5], [0.0, 0.1], [0.0, 0.0]]))
        ('HighlyKnown', 'MaybeKnown', 'WeaklyKnown', 'Unknown')
    """

    version = 2

    def __init__(
        self, num_prompts: int = 4, num_shots: int = 4, num_samples: int = 4, temperature: float = 0.5, seed: int = 0
    ) -> None:
        for name, value, least in (
            ("num_prompts", num_prompts, 1),
            ("num_shots", num_shots, 0),
            ("num_samples", num_samples, 0),
        ):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        Sampling(max(num_samples, 1), temperature, seed)  # checks the rest
        self.num_prompts = num_prompts
        self.num_shots = num_shots
        self.num_samples = num_samples
        self.temperature = temperature
        self.seed = seed

    @override
    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        encoder = context.encoder
        asked: list[int] = []
        prompt_ids = []
        for row, prompts in enumerate(self.prompts(facts)):
            for prompt in prompts:
                with suppress(InputError):  # with its examples it may be longer than the model takes
                    prompt_ids.append(encoder.encode_prompt(prompt))
                    asked.append(row)
        longest = [
            max(encoder.count_answer_tokens(answer, fact.joiner) for answer in fact.accepted_answers) for fact in facts
        ]
        limits = [longest[row] for row in asked]
        settings: dict[str, Any] = {
            "pad_id": encoder.pad_id,
            "stop_ids": encoder.stop_ids,
            "batch_size": context.batch_size,
        }
        greedy = [[ids] for ids in greedy_answers(context.model, prompt_ids, limits, **settings)]
        sampled: list[list[list[int]]] = [[] for _ in asked]
        if self.num_samples:
            sampling = Sampling(self.num_samples, self.temperature, self.seed)
            sampled = sampled_answers(context.model, prompt_ids, limits, sampling, **settings)
        shares = np.zeros((len(facts), 2))
        for column, answers in enumerate((greedy, sampled)):
            is_correct: dict[int, list[bool]] = defaultdict(list)
            for row, drawn in zip(asked, answers, strict=True):
                accepted = facts[row].accepted_answers
                is_correct[row] += [starts_with_answer(encoder.decode_answer(ids), accepted) for ids in drawn]
            for row, correct in is_correct.items():
                shares[row, column] = sum(correct) / len(correct) if correct else 0.0
        return shares

    def prompts(self, facts: Sequence[Fact]) -> list[list[str]]:
        """Up to `num_prompts` prompts of each fact, zero-shot prompts first.

        Args:
            facts: The facts; the others of a fact's relation are its examples.

        Returns:
            The prompts of each fact.
        """
        of_relation: dict[str, list[Fact]] = defaultdict(list)
        prompts: list[list[str]] = []
        places = []
        for fact in facts:
            places.append(len(of_relation[fact.relation]))
            of_relation[fact.relation].append(fact)
        for row, fact in enumerate(facts):
            mine = [fact.prompt, *fact.paraphrases][: self.num_prompts]
            enough = len(of_relation[fact.relation]) > self.num_shots
            pool, own = (of_relation[fact.relation], places[row]) if enough else (facts, row)
            num_others = len(pool) - 1
            if self.num_shots and num_others:
                while len(mine) < self.num_prompts:
                    generator = np.random.default_rng(_seed(self.seed, fact.id, len(mine)))
                    chosen = generator.choice(num_others, min(self.num_shots, num_others), replace=False).tolist()
                    shown = [pool[at + (at >= own)] for at in chosen]
                    lines = [f"{other.prompt}{other.joiner}{other.target}" for other in shown]
                    mine.append("\n".join([*lines, fact.prompt]))
            prompts.append(mine)
        return prompts


class StrataFilter(FactFilter):
    """Keeps the facts of some strata. The reason of a dropped fact is its stratum, such as `highly_known`.

    Gekhman et al. find that `MaybeKnown` facts help fine-tuning most, and that `Unknown` ones are learned late and
    encourage hallucination. Cost: that of `Strata`, once. Its settings: `data.selection.strata`.

    Args:
        keep_strata: The strata to keep, of `HighlyKnown`, `MaybeKnown`, `WeaklyKnown`, `Unknown`.

    Raises:
        InputError: If a stratum is unknown, or there is none, or all four; from `select`, if strata were not measured.

    Example:
        >>> facts = ScoredFacts(("a", "b"), ("",) * 2, np.zeros(2), np.zeros(2), np.zeros(2, dtype=bool))
        >>> StrataFilter(["Unknown"]).select(replace(facts, stratum=("HighlyKnown", "Unknown"))).reason
        ('highly_known', None)
    """

    needs_strata = True

    def __init__(self, keep_strata: list[Stratum]) -> None:
        unknown = [name for name in keep_strata if name not in STRATA]
        if unknown or not 0 < len(set(keep_strata)) < len(STRATA):
            raise InputError(
                f"`keep_strata` must name one to three of {', '.join(STRATA)}, got {keep_strata!r}. "
                "To keep all of them leave the filter out."
            )
        self.keep_strata = list(keep_strata)

    @override
    def select(self, facts: ScoredFacts) -> Selection:
        if len(facts.stratum) != len(facts):
            raise InputError("StrataFilter needs the facts' strata; set `data.selection.strata`.")
        kept = np.array([stratum in self.keep_strata for stratum in facts.stratum], dtype=np.bool_)
        return Selection(kept, tuple(None if one in self.keep_strata else _REASON[one] for one in facts.stratum))


def strata_of(shares: FloatArray) -> tuple[Stratum, ...]:
    """The strata of SliCK from shares of correct answers.

    HighlyKnown: every greedy answer is correct; MaybeKnown: some are; WeaklyKnown: none is, but a sampled one is;
    Unknown: no answer is. Source: Gekhman et al. 2024, table 1.

    Args:
        shares: As returned by `Strata.measure`, `(n, 2)`.
    """
    return tuple(
        "HighlyKnown" if greedy == 1 else "MaybeKnown" if greedy > 0 else "WeaklyKnown" if sampled > 0 else "Unknown"
        for greedy, sampled in shares.tolist()
    )


def with_strata(facts: ScoredFacts, shares: FloatArray) -> ScoredFacts:
    """The table with its `stratum` column filled.

    Args:
        facts: The table.
        shares: As returned by `Strata.measure`, in the table's order.
    """
    return replace(facts, stratum=strata_of(shares))


def _seed(seed: int, fact_id: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{fact_id}:{number}".encode()).digest()[:8], "big")
