"""Facts that contradict what the base model knows with confidence: the likely errors or attacks in a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, facts_key
from lit_semantic_peft.metrics import normalize_answer, target_probability
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.semantics.table import ScoredFacts
from lit_semantic_peft.tokens import EncodedFact, FactEncoder, collate

DOUBTFUL = 0.5
"""Probability of the base model's own answer from which on a fact that contradicts it is doubtful."""

_VERSION = 1
_BATCH = 64
# Words that begin a longer answer, and are none themselves.
_NO_ANSWERS = {
    *("a", "an", "the", "this", "that", "these", "it", "its", "he", "she", "they", "there", "in", "on", "at", "of"),
    *(
        "to",
        "by",
        "for",
        "from",
        "with",
        "as",
        "and",
        "or",
        "not",
        "no",
        "one",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
    ),
    *("has", "have", "had", "called", "known", "named", "located", "situated", "also", "very", "most", "about"),
}


@dataclass(frozen=True, slots=True)
class DoubtfulFact:
    """A fact whose target the base model contradicts with confidence.

    Attributes:
        fact_id: Of the fact.
        prompt: Its prompt.
        target: What would be taught.
        answer: The first word of the base model's greedy answer.
        probability: Of that word under the base model, in [0.5, 1].
        target_probability: Of the whole target under the base model.
        location: File and line of the fact.
    """

    fact_id: str
    prompt: str
    target: str
    answer: str
    probability: float
    target_probability: float
    location: str


def doubtful_facts(
    facts: Sequence[Fact],
    scored: ScoredFacts,
    encoded: Sequence[EncodedFact],
    base: BaseModel,
    encoder: FactEncoder,
    device: torch.device,
    cache: ContentCache | None = None,
) -> list[DoubtfulFact]:
    """The facts to be taught that contradict the base model, those first of which it is surest.

    Measured is the first word of its greedy answer, since the rest of a sentence is no part of an answer. Left out are
    facts that it knows, words that the target begins with, and words that only begin a longer answer: English function
    words, and words in lower case where the target has a capital or a digit. A model that is sure can be wrong, and a
    fact that has changed is no error: read the list, and drop nothing by it alone. Source: ours.

    Args:
        facts: The facts; those of the split `inject` are looked at.
        scored: What is known of them, row by row.
        encoded: Their tokens.
        base: The base model; loaded where the cache does not have what is needed.
        encoder: How facts become tokens.
        device: Where it runs.
        cache: Where probabilities are kept.
    """
    answers = _contradicting(facts, scored)
    rows = list(answers)
    if not rows:
        return []
    texts = []
    for row in list(rows):
        try:
            texts.append(encoder.without_limit().encode(facts[row].prompt, answers[row], facts[row].joiner))
        except InputError:  # a word that the tokenizer cannot part from the prompt
            rows.remove(row)
    manifest = {
        "what": "probabilities of contradicting answers", "version": _VERSION, "base": base.source.fingerprint,
        "dtype": base.dtype, "encoder": encoder.identity, "facts": facts_key([facts[row] for row in rows]),
        "answers": [answers[row] for row in rows],
    }  # fmt: skip
    kept = cache.load_array(manifest) if cache is not None else None
    if kept is None or kept.shape != (len(rows),):
        kept = _probabilities(lambda: base.load().to(device), texts, encoder.pad_id)
        if cache is not None:
            cache.store_array(manifest, kept)
    found = [
        DoubtfulFact(
            fact_id=facts[row].id,
            prompt=facts[row].prompt,
            target=facts[row].target,
            answer=answers[row],
            probability=float(probability),
            target_probability=float(
                target_probability(torch.tensor(scored.base_nll[row]), torch.tensor(encoded[row].num_target_tokens))
            ),
            location=facts[row].location,
        )
        for row, probability in zip(rows, kept.tolist(), strict=True)
        if probability >= DOUBTFUL
    ]
    return sorted(found, key=lambda one: (-one.probability, one.fact_id))


def _contradicting(facts: Sequence[Fact], scored: ScoredFacts) -> dict[int, str]:
    """The first word of the base model's answer to each fact that it contradicts, by row."""
    answers = {}
    for row, fact in enumerate(facts):
        words = scored.base_answer[row].split()
        if fact.split != "inject" or scored.is_known[row] or not words:
            continue
        word = words[0].rstrip(".,;:!?\"'”’)")
        if not word or word.casefold() in _NO_ANSWERS or (_is_name(fact.target) and not _is_name(word)):
            continue
        begins = {normalize_answer(answer).split(" ")[0] for answer in fact.accepted_answers}
        begins |= {answer.split()[0].casefold() for answer in fact.accepted_answers if answer.split()}
        if normalize_answer(word) not in begins:
            answers[row] = word
    return answers


def _is_name(text: str) -> bool:
    return text[:1].isdigit() or text[:1].isupper()


def _probabilities(
    load: Callable[[], PreTrainedModel], texts: Sequence[EncodedFact], pad_id: int
) -> NDArray[np.float64]:
    """Probability of each target, float64 `(n,)`."""
    if not texts:
        return np.zeros(0)
    model, found = load(), []
    for start in range(0, len(texts), _BATCH):
        chunk = texts[start : start + _BATCH]
        batch = collate(chunk, range(len(chunk)), pad_id, with_end=False).to(next(model.parameters()).device)
        count = torch.tensor([one.num_target_tokens for one in chunk])
        found.append(target_probability(score_targets(model, batch).nll.double().cpu(), count).numpy())
    return np.concatenate(found)
