"""A model's answers to questions, and the cache of the base model's answers, keyed by everything they depend on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.evaluation.questions import Question
from lit_semantic_peft.files import content_key

logger = logging.getLogger(__name__)

_DISTANCE_PREFIX = "distance_"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one side (base model or adapter) to a question.

    Attributes:
        text: The free greedy answer up to its stop; "" where only the target is measured.
        is_correct: Whether it equals an accepted answer after normalisation.
        is_recalled: Whether every target token wins (is the argmax) under the true prefix.
        nll: Mean negative log-likelihood of the target, nats per token.
        distances: Distances of the target, by name; of the facts' own prompts only.
        winners: The argmax tokens at the target's positions, of neighbours only.
        likeliest_ids: The K tokens that are likeliest at each of m target positions, int32 `(m, K)`; of neighbours
            under the base model only.
        likeliest_log_prob: Their log-probabilities, float32 `(m, K)`.
        kl: Divergence from the base model, mean over the target's positions, nats; of neighbours under the trained
            model only.
    """

    text: str
    is_correct: bool
    is_recalled: bool
    nll: float
    distances: dict[str, float]
    winners: tuple[int, ...] = ()
    likeliest_ids: NDArray[np.int32] | None = None
    likeliest_log_prob: NDArray[np.float32] | None = None
    kl: float | None = None


def load_answers(
    cache: ContentCache, manifest: Mapping[str, Any], questions: Sequence[Question]
) -> dict[int, Answer] | None:
    """Loads answers from the cache, if all are there.

    Args:
        cache: Where they are kept.
        manifest: Everything that they depend on.
        questions: The questions to answer.

    Returns:
        The answers by question number, or None. A damaged or incomplete table counts as absent and is named in the
        log.
    """
    answers = cache.load_table(manifest, _answers)
    if answers is None:
        return None
    if any(question.number not in answers for question in questions):
        logger.warning("The cached answers in %s are incomplete; the base model answers them again.", cache.folder)
        return None
    return answers


def store_answers(cache: ContentCache, manifest: Mapping[str, Any], answers: Mapping[int, Answer]) -> None:
    """Stores answers in the cache.

    Args:
        cache: Where they are kept.
        manifest: Everything that they depend on.
        answers: By question number.
    """
    rows = [_row(number, answer) for number, answer in answers.items()]
    cache.store_table(manifest, pa.Table.from_pylist(rows, _schema(manifest)))


def questions_key(questions: Sequence[Question]) -> str:
    """Content key of questions: equal exactly when the same tokens are asked and the same answers accepted."""
    return content_key(
        [
            [
                one.number,
                one.kind,
                one.prompt_ids,
                one.encoded and one.encoded.target_ids,
                one.max_new_tokens,
                one.accepted,
            ]
            for one in questions
        ]
    )


def _schema(manifest: Mapping[str, Any]) -> pa.Schema:
    fields = [
        ("number", pa.int64()), ("text", pa.string()), ("is_correct", pa.bool_()), ("is_recalled", pa.bool_()),
        ("nll", pa.float64()), ("winners", pa.list_(pa.int32())), ("likeliest_ids", pa.list_(pa.int32())),
        ("likeliest_log_prob", pa.list_(pa.float32())),
    ]  # fmt: skip
    return pa.schema([*fields, *((_DISTANCE_PREFIX + one["name"], pa.float64()) for one in manifest["distances"])])


def _row(number: int, answer: Answer) -> dict[str, Any]:
    ids, log_prob = answer.likeliest_ids, answer.likeliest_log_prob
    return {
        "number": number,
        "text": answer.text,
        "is_correct": answer.is_correct,
        "is_recalled": answer.is_recalled,
        "nll": answer.nll,
        "winners": list(answer.winners),
        "likeliest_ids": None if ids is None else ids.ravel(),
        "likeliest_log_prob": None if log_prob is None else log_prob.ravel(),
        **{_DISTANCE_PREFIX + name: value for name, value in answer.distances.items()},
    }


def _answers(table: pa.Table) -> dict[int, Answer]:
    return {row["number"]: _answer(row) for batch in table.to_batches() for row in batch.to_pylist()}


def _answer(row: dict[str, Any]) -> Answer:
    positions = len(row["winners"])
    ids, log_prob = row["likeliest_ids"], row["likeliest_log_prob"]
    distances = {name: value for name, value in row.items() if name.startswith(_DISTANCE_PREFIX) and value is not None}
    return Answer(
        text=row["text"],
        is_correct=row["is_correct"],
        is_recalled=row["is_recalled"],
        nll=row["nll"],
        distances={name.removeprefix(_DISTANCE_PREFIX): value for name, value in distances.items()},
        winners=tuple(row["winners"]),
        likeliest_ids=None if ids is None else np.array(ids, dtype=np.int32).reshape(positions, -1),
        likeliest_log_prob=None if log_prob is None else np.array(log_prob, dtype=np.float32).reshape(positions, -1),
    )
