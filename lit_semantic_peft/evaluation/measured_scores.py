"""From answers to scores: a row per fact, and what happened to everything else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_semantic_peft.evaluation.answers import Answer
from lit_semantic_peft.evaluation.evaluator import Comparison
from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.metrics import (
    Efficacy,
    Generalization,
    Locality,
    Portability,
    Retention,
    Robustness,
    starts_with_answer,
    target_probability,
)
from lit_semantic_peft.statistics import bootstrap_interval

Side = Literal["before", "after"]


@dataclass(frozen=True)
class Scores:
    """What an evaluation says.

    Attributes:
        per_fact: By column of the fact table, float64 `(n,)`; NaN where not measured.
        retention: Of `Retention`: `nll_before`, `nll_after`, `nll_delta`, `known`; NaN where not measured.
        text_nll_delta: `nll_delta` of each neutral text, nats per token.
        is_still_known: For each fact that the base model answers right and that had no part in training, whether the
            trained model does.
    """

    per_fact: dict[str, Tensor]
    retention: dict[str, float]
    text_nll_delta: list[float]
    is_still_known: list[bool]

    def columns(self) -> dict[str, list[Any]]:
        """The per-fact numbers for the fact table; None where not measured."""
        return {
            name: [None if value != value else value for value in values.tolist()]
            for name, values in self.per_fact.items()
        }

    def scalars(self, is_kept: Tensor) -> dict[str, float]:
        """What is logged: the trained model's scores over the kept facts with their intervals, and retention.

        Args:
            is_kept: Which facts the filters kept, bool `(n,)`.
        """
        logged: dict[str, float] = {}
        for score in SCORES:
            values = self.per_fact[score.after]
            kept, dropped = (values[rows & ~values.isnan()].numpy() for rows in (is_kept, ~is_kept))
            recall = _RECALLS.get(score.name)
            if (interval := bootstrap_interval(kept)) is not None:
                if recall:
                    logged[recall] = interval.mean
                logged[score.name] = interval.mean
                logged[f"{score.name}_low"], logged[f"{score.name}_high"] = interval.low, interval.high
            if recall and len(dropped):
                logged[f"{recall}_dropped"] = float(dropped.mean())
        return logged | {f"retention_{name}": value for name, value in self.retention.items() if value == value}


_RECALLS = {"efficacy": "recall_generated", "efficacy_teacher_forced": "recall"}


def measure_scores(comparisons: Sequence[Comparison], is_untouched: Tensor) -> Scores:
    """The scores of an evaluation.

    Args:
        comparisons: Every question once, with both sides' answers.
        is_untouched: Which facts had no part in training, bool `(n,)`.
    """
    num_facts = len(is_untouched)
    per_fact: dict[str, Tensor] = {}
    for side in ("before", "after"):
        per_fact |= {f"{name}_{side}": values for name, values in _of_side(comparisons, side, num_facts).items()}
    locality = Locality(num_facts, sync_on_compute=False)
    near = [row for row in comparisons if row.question.kind == "neighborhood"]
    locality.update(
        _index(near),
        generated=_flags([row.is_unchanged for row in near]),
        teacher_forced=_flags([row.before.winners == row.after.winners for row in near]),
        kl=torch.tensor([row.after.kl for row in near], dtype=torch.float64),
    )
    parts = locality.compute()
    per_fact |= {
        "locality": parts["generated"], "locality_teacher_forced": parts["teacher_forced"], "locality_kl": parts["kl"],
    }  # fmt: skip
    texts = [row for row in comparisons if row.question.kind == "text"]
    known = [
        row
        for row in comparisons
        if row.question.kind == "known" or (row.question.kind == "fact" and is_untouched[row.question.fact_index])
    ]
    # A base model that knows an answer does not stop behind it.
    known = [row for row in known if starts_with_answer(row.before.text, row.question.accepted)]
    still = [starts_with_answer(row.after.text, row.question.accepted) for row in known]
    before, after = (torch.tensor([getattr(row, side).nll for row in texts]) for side in ("before", "after"))
    retention = Retention(sync_on_compute=False)
    retention.update(before, after, _lengths(texts), _flags(still))
    return Scores(
        per_fact=per_fact,
        retention={name: float(value) for name, value in retention.compute().items()},
        text_nll_delta=(after.double() - before.double()).tolist(),
        is_still_known=still,
    )


def _of_side(comparisons: Sequence[Comparison], side: Side, num_facts: int) -> dict[str, Tensor]:
    """Per-fact numbers of the base model or of the trained model, by column without side."""

    def asked(*kinds: str) -> list[Comparison]:
        return [row for row in comparisons if row.question.kind in kinds]

    def answers(rows: Sequence[Comparison]) -> list[Answer]:
        return [row.before if side == "before" else row.after for row in rows]

    def correct(rows: Sequence[Comparison]) -> Tensor:
        return _flags([one.is_correct for one in answers(rows)])

    def recalled(rows: Sequence[Comparison]) -> Tensor:
        return _flags([one.is_recalled for one in answers(rows)])

    def nll(rows: Sequence[Comparison]) -> Tensor:
        return torch.tensor([one.nll for one in answers(rows)], dtype=torch.float64)

    def lowest(rows: Sequence[Comparison]) -> Tensor:
        """Lowest likelihood loss of a fact's rows, `(n,)`; NaN for a fact without one."""
        least = torch.full((num_facts,), torch.inf, dtype=torch.float64)
        least = least.scatter_reduce(0, _index(rows), nll(rows), "amin")
        return torch.where(least.isinf(), torch.nan, least)

    def preferred(rows: Sequence[Comparison], rivals: Sequence[Comparison]) -> Tensor:
        """Whether a row is likelier per token than each rival of its fact; NaN where there is none."""
        against = lowest(rivals)[_index(rows)]
        return torch.where(against.isnan(), torch.nan, (nll(rows) < against).double())

    facts = asked("fact")
    efficacy = Efficacy(num_facts, sync_on_compute=False)
    efficacy.update(
        _index(facts),
        generated=correct(facts),
        teacher_forced=recalled(facts),
        probability=target_probability(nll(facts), _lengths(facts)),
        over_true=preferred(facts, asked("rival")),
    )
    generalization = Generalization(num_facts, sync_on_compute=False)
    other_words, backwards, choices = asked("paraphrase"), asked("reversed"), asked("choice")
    generalization.update(_index(other_words), generated=correct(other_words), teacher_forced=recalled(other_words))
    generalization.update(_index(backwards), reversed=correct(backwards), reversed_teacher_forced=recalled(backwards))
    generalization.update(_index(choices), choice=preferred(choices, asked("wrong_choice")))
    learned = efficacy.compute()
    conclusions = asked("portability")
    portability = Portability(num_facts, sync_on_compute=False)
    portability.update(
        _index(conclusions),
        correct(conclusions),
        recalled(conclusions),
        _are_learned(conclusions, learned["generated"] == 1),
        _are_learned(conclusions, learned["teacher_forced"] == 1),
    )
    robustness = Robustness(num_facts, sync_on_compute=False)
    for kind, part in (("doubt_plain", "plain"), ("doubt_chat", "chat")):
        turns = [row for row in asked(kind) if row.question.turn]
        robustness.update(_index(turns), **{part: correct(turns)})
    general, follows, doubted = generalization.compute(), portability.compute(), robustness.compute()
    return {
        "efficacy": learned["generated"],
        "efficacy_teacher_forced": learned["teacher_forced"],
        "efficacy_probability": learned["probability"],
        "efficacy_over_true": learned["over_true"],
        "generalization": general["generated"],
        "generalization_teacher_forced": general["teacher_forced"],
        "generalization_reversed": general["reversed"],
        "generalization_reversed_teacher_forced": general["reversed_teacher_forced"],
        "generalization_choice": general["choice"],
        "portability": follows["generated"],
        "portability_teacher_forced": follows["teacher_forced"],
        "portability_of_learned": follows["of_learned"],
        "portability_of_learned_teacher_forced": follows["of_learned_teacher_forced"],
        "robustness_plain": doubted["plain"],
        "robustness_chat": doubted["chat"],
    }


def _index(rows: Sequence[Comparison]) -> Tensor:
    return torch.tensor([row.question.fact_index for row in rows], dtype=torch.long)


def _are_learned(rows: Sequence[Comparison], is_learned: Tensor) -> Tensor:
    """Whether all facts that each row follows from were learned; one that is not among the facts was not."""
    return _flags(
        [
            all(index >= 0 and bool(is_learned[index]) for index in (row.question.fact_index, *row.question.needs))
            for row in rows
        ]
    )


def _flags(values: Sequence[bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def _lengths(rows: Sequence[Comparison]) -> Tensor:
    """Target tokens of each row."""
    return torch.tensor(
        [row.question.encoded.num_target_tokens for row in rows if row.question.encoded], dtype=torch.long
    )
