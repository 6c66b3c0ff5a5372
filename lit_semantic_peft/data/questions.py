"""What the final evaluation asks, once it is known which facts are trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_semantic_peft.data.builtin_known import builtin_facts
from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.data.prepared import PreparedFacts
from lit_semantic_peft.evaluation.answers import questions_key
from lit_semantic_peft.evaluation.plan import EvaluationPlan
from lit_semantic_peft.evaluation.questions import Question, doubt_questions, fact_questions, retention_questions
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.semantics import Distance
from lit_semantic_peft.tokens import FactEncoder


def final_questions(
    of_facts: Sequence[Question],
    texts: Sequence[str],
    prepared: PreparedFacts,
    encoder: FactEncoder,
    plan: EvaluationPlan,
    seed: int,
) -> list[Question]:
    """Facts and probes, then dialogues, then what must not change.

    Args:
        of_facts: The questions of the facts themselves and their probes.
        texts: The unrelated text.
        prepared: Which facts are trained.
        encoder: How facts become tokens.
        plan: What is asked.
        seed: Of the choice of doubted facts and of further known ones.
    """
    questions = list(of_facts)
    if plan.doubt_turns:
        chosen = np.random.default_rng(seed).permutation(prepared.kept_index)[: plan.doubt_facts]
        rows = sorted(chosen.tolist())
        questions += doubt_questions(prepared.facts, rows, encoder, plan.doubt_turns, len(questions))
    if plan.retention:
        first_number = questions[-1].number + plan.doubt_turns + 1
        further = _further_known_facts(prepared, plan.min_known_facts, seed)
        questions += retention_questions(texts, further, encoder, first_number)
    return questions


def own_questions(prepared: PreparedFacts, encoder: FactEncoder) -> list[Question]:
    """The facts' own prompts alone.

    Args:
        prepared: The facts.
        encoder: How they become tokens.
    """
    of_facts = fact_questions(prepared.facts, encoder, EvaluationPlan(probes=[]), encoded=prepared.encoded)
    return [one for one in of_facts if one.kind == "fact"]


def answer_manifest(
    questions: Sequence[Question],
    plan: EvaluationPlan,
    base: BaseModel,
    encoder: FactEncoder,
    distances: Sequence[Distance],
    **how: Any,
) -> dict[str, Any]:
    """Everything that the base model's answers depend on, as plain data.

    Args:
        questions: What is asked.
        plan: How it is asked.
        base: The base model.
        encoder: How questions become tokens.
        distances: What is measured of the answers.
        how: How the model runs. Batching changes rounding, and the difference of unchanged answers must be exactly 0.
    """
    return {
        "questions": questions_key(questions),
        "num_questions": len(questions),
        "doubt_turns": plan.doubt_turns,
        "base_model": base.source.public_name,
        "base_fingerprint": base.source.fingerprint,
        "dtype": base.dtype,
        **encoder.identity,
        "distances": [identity(distance) for distance in distances],
        **how,
    }


def _further_known_facts(prepared: PreparedFacts, least: int, seed: int) -> list[Fact]:
    """Built-in facts about other subjects, if too few of the run's own known facts are untouched by training."""
    if (prepared.scored.is_known & prepared.is_untouched).sum() >= least:
        return []
    return list(builtin_facts(prepared.facts, seed).asked)
