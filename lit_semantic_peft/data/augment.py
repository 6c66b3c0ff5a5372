"""Restatements of facts, written by a local model: more forms to teach, without a network."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from lit_semantic_peft.cache import ContentCache, cache_folder
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.data.scoring import default_device
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, facts_key
from lit_semantic_peft.facts.forms.restatements import (
    RESTATEMENTS_VERSION,
    kept_restatements,
    restatement_prompt,
)
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.models.sampling import Sampling, sampled_answers
from lit_semantic_peft.tokens import FactEncoder

_LONGER_THAN_THE_FACT = 16
"""Tokens that a restatement may have more than the fact."""


@dataclass(frozen=True)
class Augmented:
    """Facts with the restatements that were kept.

    Attributes:
        facts: All facts, in order.
        num_forms: Restatements that were kept.
        num_restated: Facts that have at least one.
        left_out: Restatements that were left out, by reason, the most frequent first.
        num_without_subject: Facts that name no subject, for which none was asked.
    """

    facts: tuple[Fact, ...]
    num_forms: int
    num_restated: int
    left_out: dict[str, int]
    num_without_subject: int


def augment(
    facts: Sequence[Fact],
    model: BaseModel | str | os.PathLike[str],
    *,
    num_forms: int = 3,
    sampling: Sampling | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    cache: ContentCache | None = None,
) -> Augmented:
    """Adds restatements to the `forms` of facts.

    A causal language model writes each fact in other words, after three examples. A restatement is kept only if it is
    one sentence with the subject before the target and the target at its end, and is no near-duplicate. Whether it
    *says* the same as the fact nobody checks: look at what a small model wrote. What was drawn is kept in the cache
    batch by batch, so that an interrupted call goes on where it was.

    Cost: `sampling.num_samples` generations a fact.

    Args:
        facts: The facts; those of the split `inject` are restated.
        model: Any causal language model.
        num_forms: Most restatements to keep of a fact, ≥ 1.
        sampling: Number, temperature and seed of the samples; 8 at 0.8 where None.
        batch_size: Facts per batch, ≥ 1.
        device: Where the model runs: the first GPU, else the CPU, where None.
        cache: Where samples are kept; the user's cache where None.

    Raises:
        InputError: If a setting is out of its range, no fact names a subject, or the model cannot be loaded or used.
    """
    for name, value in (("num_forms", num_forms), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"`{name}` must be at least 1, got {value}")
    sampling = sampling or Sampling(8, temperature=0.8)
    offered = [row for row, fact in enumerate(facts) if fact.split == "inject"]
    rows = [row for row in offered if facts[row].subject]
    if not rows:
        raise InputError(
            "`facts`: no fact names a `subject`, so it cannot be checked whether a restatement is about it. Add the "
            "field `subject`."
        )
    written = _written([facts[row] for row in rows], BaseModel.of(model), sampling, batch_size, device, cache)
    augmented, left_out = list(facts), Counter[str]()
    for row, texts in zip(rows, written, strict=True):
        forms, reasons = kept_restatements(facts[row], texts, num_forms)
        left_out += reasons
        augmented[row] = replace(facts[row], forms=(*facts[row].forms, *forms))
    num_new = [len(augmented[row].forms) - len(facts[row].forms) for row in rows]
    return Augmented(
        tuple(augmented),
        num_forms=sum(num_new),
        num_restated=sum(count > 0 for count in num_new),
        left_out=dict(left_out.most_common()),
        num_without_subject=len(offered) - len(rows),
    )


def _written(
    facts: Sequence[Fact],
    base: BaseModel,
    sampling: Sampling,
    batch_size: int,
    device: str | torch.device | None,
    cache: ContentCache | None,
) -> list[list[str]]:
    """What the model writes for each fact, one text per sample; from the cache as far as it is there."""
    cache = cache or ContentCache(cache_folder() / "restatements")
    manifest = {
        "what": "restatements", "version": RESTATEMENTS_VERSION, "facts": facts_key(facts),
        "base_fingerprint": base.source.fingerprint, "dtype": base.dtype, "batch_size": batch_size,
        "num_samples": sampling.num_samples, "temperature": sampling.temperature, "seed": sampling.seed,
    }  # fmt: skip
    complete = cache.load_table(manifest, _texts)
    if complete is not None:
        return complete
    encoder = encoder_of(base, EncodingPlan(append_eos=False))
    model = base.load().to(default_device(device))
    newline = encoder.tokenizer.encode("\n", add_special_tokens=False)
    stop_ids = (*encoder.stop_ids, *(newline if len(newline) == 1 else ()))
    written: list[list[str]] = []
    with tqdm(total=len(facts), desc="Restating facts", unit="fact", delay=1, disable=None) as bar:
        for number, start in enumerate(range(0, len(facts), batch_size)):
            batch = facts[start : start + batch_size]
            part = cache.load_part(manifest, number, _texts)
            if part is None:
                prompts = [_prompt_ids(encoder, fact) for fact in batch]
                lengths = [
                    encoder.count_answer_tokens(f"{fact.prompt}{fact.joiner}{fact.target}") + _LONGER_THAN_THE_FACT
                    for fact in batch
                ]
                answers = sampled_answers(
                    model, prompts, lengths, sampling, pad_id=encoder.pad_id, stop_ids=stop_ids, batch_size=batch_size
                )
                part = [[str(encoder.tokenizer.decode(ids)) for ids in of_fact] for of_fact in answers]
                cache.store_part(manifest, number, _table(part))
            written += part
            bar.update(len(batch))
    cache.store_table(manifest, _table(written))
    return written


def _prompt_ids(encoder: FactEncoder, fact: Fact) -> tuple[int, ...]:
    try:
        return encoder.encode_prompt(restatement_prompt(fact))
    except InputError as error:
        raise InputError(f"{fact.location or 'fact'}: fact {fact.id!r} cannot be restated: {error}") from error


def _table(texts: list[list[str]]) -> pa.Table:
    return pa.table({"texts": pa.array(texts, pa.list_(pa.string()))})


def _texts(table: pa.Table) -> list[list[str]]:
    texts: list[list[str]] = table["texts"].to_pylist()
    return texts
