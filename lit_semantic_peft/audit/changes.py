"""What an adapter changed: answers to known facts, neighbours, and what was right before and is wrong now."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from peft import PeftModel

from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.evaluation import (
    EVALUATION_VERSION,
    Answer,
    Comparison,
    Evaluation,
    EvaluationPlan,
    Evaluator,
    Question,
    fact_questions,
    load_answers,
    store_answers,
)
from lit_semantic_peft.evaluation.answers import questions_key
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.metrics import starts_with_answer
from lit_semantic_peft.reports import fact_table, measure_side_effects
from lit_semantic_peft.semantics import Distance, Surprisal
from lit_semantic_peft.statistics import Interval, bootstrap_interval
from lit_semantic_peft.tokens import FactEncoder

_BATCH = 64
_GIVEN_PROBES = EvaluationPlan(probes=["paraphrase", "neighborhood", "portability"])
_BUILTIN_PROBES = EvaluationPlan(probes=[])
_DISTANCES: tuple[Distance, ...] = (Surprisal(),)
_COMMONEST = 5


@dataclass(frozen=True, slots=True)
class LostFact:
    """A fact that the base model answers rightly and the adapter wrongly.

    Attributes:
        fact_id: Of the fact.
        relation: Of the fact.
        prompt: What was asked.
        right: The right answer.
        before: The base model's answer.
        after: The adapter's answer.
        nll_before: Of the right answer under the base model, nats per token.
        nll_after: The same under the adapter.
        is_replaced: Whether the adapter names the target of another fact of the same relation instead.
    """

    fact_id: str
    relation: str
    prompt: str
    right: str
    before: str
    after: str
    nll_before: float
    nll_after: float
    is_replaced: bool


@dataclass(frozen=True)
class ChangeFindings:
    """What an adapter changed among some facts.

    Attributes:
        num_facts: How many were asked.
        flipped: Share whose answer is another one, with its interval over facts.
        flipped_by_relation: The same by relation, without interval, with the number of facts.
        num_known: How many the base model answers rightly.
        lost: Share of these that the adapter answers wrongly, with its interval; None where the base knows none.
        replaced: Share of these for which it names the target of another fact of the relation; None likewise.
        lost_facts: They, those first whose right answer became least likely.
        gained: Share of the others that the adapter answers rightly; None where there is none.
        commonest: The adapter's most frequent answers, each with its number of facts.
        neighbour_kl: KL(base ‖ adapter) of the neighbours' answers, nats, over neighbours; None without any.
        side_effects: The side-effect matrix: rows of relation, evaluated group, change of the loss, number of facts and
            whether it exceeds chance.
        scores: Efficacy, generalization and portability of the adapter on facts that it was meant to learn.
    """

    num_facts: int
    flipped: Interval | None
    flipped_by_relation: dict[str, tuple[float, int]]
    num_known: int
    lost: Interval | None
    replaced: Interval | None
    lost_facts: tuple[LostFact, ...]
    gained: Interval | None
    commonest: tuple[tuple[str, int], ...]
    neighbour_kl: Interval | None
    side_effects: tuple[dict[str, Any], ...]
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {
            "num_facts": self.num_facts,
            "num_known": self.num_known,
            **{
                name: None if (value := getattr(self, name)) is None else asdict(value)
                for name in ("flipped", "lost", "replaced", "gained", "neighbour_kl")
            },
            "flipped_by_relation": {
                name: {"share": share, "num_facts": count} for name, (share, count) in self.flipped_by_relation.items()
            },
            "commonest_answers": [{"answer": answer, "num_facts": count} for answer, count in self.commonest],
            "scores": self.scores,
            "side_effects": list(self.side_effects),
            "lost_facts": [asdict(fact) for fact in self.lost_facts],
        }


def measure_changes(
    model: PeftModel,
    encoder: FactEncoder,
    facts: Sequence[Fact],
    *,
    is_taught: bool,
    others: Sequence[Fact] = (),
    base_key: str | None = None,
    cache: ContentCache | None = None,
) -> ChangeFindings:
    """Asks base model and adapter some facts.

    Args:
        model: The model with its adapter, in evaluation mode.
        encoder: How facts become tokens.
        facts: At least one.
        is_taught: Whether the adapter was meant to learn them; their paraphrases, neighbours and conclusions are asked
            then, too.
        others: Further facts, whose targets are known as answers of their relation.
        base_key: What the base model's answers depend on beside the questions; None to ask it anew.
        cache: Where its answers are kept.
    """
    plan = _GIVEN_PROBES if is_taught else _BUILTIN_PROBES
    questions = fact_questions(facts, encoder, plan)
    joiners = [fact.joiner for fact in facts]
    manifest = None
    if cache is not None and base_key is not None:
        manifest = {
            "what": "answers of an audit", "version": EVALUATION_VERSION, "base": base_key,
            "questions": questions_key(questions), "encoder": encoder.identity,
            "distances": [{"name": one.name} for one in _DISTANCES],
        }  # fmt: skip
    before = load_answers(cache, manifest, questions) if cache is not None and manifest is not None else None
    if before is None:
        with model.disable_adapter():
            before = _asked(model, Evaluator(encoder, _DISTANCES, joiners=joiners), questions, None)
        if cache is not None and manifest is not None:
            store_answers(cache, manifest, before)
    after = _asked(model, Evaluator(encoder, _DISTANCES, joiners=joiners), questions, before)
    rows = [Comparison(question, before[question.number], after[question.number]) for question in questions]
    return _found(facts, rows, is_taught, others)


def _asked(
    model: PeftModel, evaluator: Evaluator, questions: Sequence[Question], reference: Mapping[int, Answer] | None
) -> dict[int, Answer]:
    """Answers by question number; questions of similar length are asked together."""
    order = sorted(questions, key=lambda one: (-len(one.prompt_ids), one.number))
    return {
        question.number: answer
        for start in range(0, len(order), _BATCH)
        for question, answer in evaluator.ask(model, order[start : start + _BATCH], reference)
    }


def _found(
    facts: Sequence[Fact], rows: Sequence[Comparison], is_taught: bool, others: Sequence[Fact]
) -> ChangeFindings:
    own = [row for row in rows if row.question.kind == "fact"]
    known = [row for row in own if row.was_known]
    names: dict[str, set[str]] = defaultdict(set)
    for fact in (*facts, *others):
        names[fact.relation or ""].add(fact.target)
    lost = [_lost(row, facts[row.question.fact_index], names) for row in known if not row.is_still_known]
    by_relation: dict[str, list[float]] = defaultdict(list)
    for row in own:
        by_relation[facts[row.question.fact_index].relation or "no relation"].append(float(not row.is_unchanged))
    replaced = {fact.fact_id for fact in lost if fact.is_replaced}
    unknown = [row for row in own if not row.was_known]
    kl = [row.after.kl for row in rows if row.question.kind == "neighborhood" and row.after.kl is not None]
    said = Counter(row.after.text for row in own if row.after.text)
    evaluation = Evaluation(rows, np.full(len(facts), not is_taught), _DISTANCES[0].name)
    scalars = evaluation.scalars(np.full(len(facts), is_taught), np.zeros(len(facts), dtype=np.bool_))
    return ChangeFindings(
        num_facts=len(own),
        flipped=bootstrap_interval([float(not row.is_unchanged) for row in own]),
        flipped_by_relation={
            name: (sum(values) / len(values), len(values)) for name, values in sorted(by_relation.items())
        },
        num_known=len(known),
        lost=bootstrap_interval([float(not row.is_still_known) for row in known]),
        replaced=bootstrap_interval([float(facts[row.question.fact_index].id in replaced) for row in known]),
        lost_facts=tuple(sorted(lost, key=lambda fact: fact.nll_before - fact.nll_after)),
        gained=bootstrap_interval([float(row.is_still_known) for row in unknown]),
        commonest=tuple((text, count) for text, count in said.most_common(_COMMONEST) if count > 1),
        neighbour_kl=bootstrap_interval(kl),
        side_effects=_side_effects(facts, evaluation, is_taught),
        scores={
            name: value
            for name, value in scalars.items()
            if is_taught and name.startswith(("efficacy", "generalization", "portability", "locality"))
        },
    )


def _lost(row: Comparison, fact: Fact, names: Mapping[str, set[str]]) -> LostFact:
    others = names[fact.relation or ""] - {*fact.accepted_answers}
    return LostFact(
        fact_id=fact.id,
        relation=fact.relation or "no relation",
        prompt=fact.prompt,
        right=fact.target,
        before=row.before.text,
        after=row.after.text,
        nll_before=row.before.nll,
        nll_after=row.after.nll,
        is_replaced=starts_with_answer(row.after.text, sorted(others)) if others else False,
    )


def _side_effects(facts: Sequence[Fact], evaluation: Evaluation, is_taught: bool) -> tuple[dict[str, Any], ...]:
    columns = evaluation.fact_columns()
    table = fact_table(
        {
            "fact_id": [fact.id for fact in facts],
            "prompt": [fact.prompt for fact in facts],
            "target": [fact.target for fact in facts],
            "relation": [fact.relation for fact in facts],
            "split": ["inject" if is_taught else "probe"] * len(facts),
            "kept": [is_taught] * len(facts),
            "nll_before": columns["nll_before"],
            "nll_after": columns["nll_after"],
        }
    )
    effects = measure_side_effects(table, pa.table(evaluation.probe_columns([fact.id for fact in facts])))
    return tuple(
        {
            "relation": cell.relation,
            "evaluated": cell.evaluated,
            "nll_delta": round(cell.nll_delta, 4),
            "num_facts": cell.num_facts,
            "exceeds_chance": cell.exceeds_chance,
        }
        for cell in effects.cells.values()
    )
