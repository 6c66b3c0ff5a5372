"""What a training is about to do and what may go wrong, in ten lines, before its first step."""

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.data.loaders import text_batches
from lit_semantic_peft.data.situation import is_sharded
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.checks import find_contradictions, normalize_text
from lit_semantic_peft.models import target_logits
from lit_semantic_peft.models.peft_settings import acts_at_names
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch, FactEncoder
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)

_BACKWARD = 1.3
"""Cost of a backward pass that updates an adapter alone, in forward passes."""
_SHOWN = 3
_MAJORITY = 0.2
"""Share of the facts from which on one answer is named."""
_LIKE = 0.5
"""Share of a name's tokens from which on another name counts as like it."""
_SURE = 0.5
"""Probability of a token from which on the base model is sure of it."""
_ACTIVATIONS = 55
"""Numbers that a step keeps for each token, layer and unit of the hidden size. Measured as the peak of a process:
SmolLM2-135M with LoRA of all linear layers, 16 facts, one CPU core."""
_HOLDS = {
    "unrelated text": {"InputDirections", "OwnSamples", "Text"},
    "other facts": {"KnownFacts", "RetainSplit", "Neighbours"},
}
"""What suffers, and the sources that hold it."""


class Preflight(Callback):
    """Prints, before the first step, what is trained, what is asked, what is held still, and what it costs.

    Cost: two forward passes, over one batch of facts by the base model and over one micro-batch.
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if not trainer.is_global_zero:
            return
        data = pl_module.data
        lines = [*about_facts(data.prepared, data.encoder)]
        cost = None
        if not is_sharded(trainer):  # no process has the whole model
            with torch.no_grad(), undisturbed(pl_module.model), trainer.precision_plugin.train_step_context():
                lines.append(("against what the model is sure of", _counted(_against_the_base_model(pl_module))))
                cost = Cost(_seconds_per_step(trainer, pl_module), bytes_of_training(trainer, pl_module))
        lines += about_training(pl_module.num_optimizer_steps, cost, pl_module)
        logger.info("Before the first step:")
        for name, said in lines:
            logger.info("  %s: %s", name, said)


def about_facts(prepared: PreparedFacts, encoder: FactEncoder) -> Iterator[tuple[str, str]]:
    """What can be said of the facts that are about to be trained: a name and a sentence each.

    Args:
        prepared: The facts.
        encoder: How they become tokens.
    """
    rows = np.flatnonzero(prepared.is_trained).tolist()
    facts = [prepared.facts[row] for row in rows]
    known = int(prepared.scored.is_known[rows].sum())
    yield "facts", f"{len(facts)} are trained; the base model answers {known} of them already"

    lengths = [prepared.encoded[row].num_target_tokens for row in rows]
    yield "loss", f"is over the target's tokens: {mean(lengths):.1f} on average, {min(lengths)} to {max(lengths)}"
    yield (
        "answers",
        "end with the end token, which is trained"
        if encoder.append_eos
        else "do not end: no end token is trained (`data.encoding.append_eos`), so the model will go on after them",
    )
    yield "forms", _forms(prepared, rows)
    yield "same prompt, other target", _counted([str(one) for one in find_contradictions(facts)])
    yield "most common target", _majority(facts)
    others = [fact for row, fact in enumerate(prepared.facts) if prepared.scored.is_known[row]]
    alike = [f"{name!r} and {other!r}" for name, other in names_alike(facts, others, encoder)]
    yield "names like those of facts that the model knows", _counted(alike)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a training is estimated to cost in one process.

    Attributes:
        seconds_per_step: Of an optimizer step.
        num_bytes: Of memory, without what the process has anyway.
    """

    seconds_per_step: float
    num_bytes: float


def about_training(num_steps: float, cost: Cost | None, module: SemanticPeftModule) -> Iterator[tuple[str, str]]:
    """What the training does and costs: a name and a sentence each.

    Args:
        num_steps: Optimizer steps; infinite where nothing ends the training.
        cost: Estimated; None where it was not.
        module: What is trained.
    """
    kinds = {source.kind for source in module.retain}
    held = ", ".join(source.in_short for source in module.retain) or "nothing"
    without = " and ".join(what for what, sources in _HOLDS.items() if not kinds & sources)
    if acts_at_names(module.peft_config):
        held += "; the adapter acts at the taught names alone, so that text without them stays as it is"
    elif module.gate is not None:
        held += "; the base model answers all prompts that name nothing taught"
        if module.gate.match == "subjects_and_targets" and not kinds:
            held += ", and text that names a target is not held"
    elif without:
        held += f"; no source in `model.retain` for {without}: expect harm"
    yield "held still", held
    trained = sum(parameter.numel() for parameter in module.trained_parameters())
    said = f"{num_steps:g} optimizer step{'' if num_steps == 1 else 's'} of {trained:,} parameters"
    if cost is not None:
        if math.isfinite(num_steps):
            said += f", about {_duration(cost.seconds_per_step * num_steps)} without evaluation"
        said += f", about {cost.num_bytes / 1e9:.1f} GB"
    yield "training", said


def names_alike(facts: Sequence[Fact], others: Sequence[Fact], encoder: FactEncoder) -> list[tuple[str, str]]:
    """Subjects of facts of which another subject has half of the tokens, so that teaching one may move the other.

    Args:
        facts: The facts that are taught.
        others: Facts that must not move.
        encoder: How names become tokens.

    Returns:
        Each subject of `facts` with the subject of `others` that is most like it, in order.
    """
    holders: dict[int, set[str]] = defaultdict(set)
    own = {fact.subject for fact in facts if fact.subject}
    for name in {fact.subject for fact in others if fact.subject} - own:
        for token in set(encoder.encode_name(name)):
            holders[token].add(name)
    found = []
    for name in sorted(own):
        tokens = set(encoder.encode_name(name))
        common = Counter(other for token in tokens for other in holders.get(token, ()))
        if common:
            other, count = max(common.items(), key=lambda item: (item[1], item[0]))
            if count >= max(2, _LIKE * len(tokens)):
                found.append((name, other))
    return found


def _forms(prepared: PreparedFacts, rows: Sequence[int]) -> str:
    forms = prepared.forms
    taught = ", ".join(f"{name} of {count}" for name, count in sorted(forms.num_facts_by_source(rows).items()))
    without = sum(not (fact.paraphrases or fact.question) for fact in (forms.of_facts[row].asked for row in rows))
    asked = f"; {without} of {len(rows)} facts are asked by their own prompt alone" if without else ""
    return (
        f"the facts' own prompts are taught, also: {taught}" if taught else "only the own prompts are taught"
    ) + asked


def _majority(facts: Sequence[Fact]) -> str:
    ((common, count),) = Counter(normalize_text(fact.target) for fact in facts).most_common(1)
    if count == 1 and len(facts) > 1:
        return "none, each fact has a target of its own"
    target = next(fact.target for fact in facts if normalize_text(fact.target) == common)
    share = count / len(facts)
    warning = ": always saying it would recall as many" if share >= _MAJORITY and len(facts) > 1 else ""
    return f"{target!r}, of {count} of {len(facts)} facts ({share:.0%}){warning}"


def _counted(found: Sequence[str]) -> str:
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} ({'; '.join(found[:_SHOWN])}{more})" if found else "none"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _against_the_base_model(module: SemanticPeftModule) -> list[str]:
    """Facts whose target begins otherwise than the base model is sure of, the surest first; of one batch of facts."""
    data = module.data
    rows = np.flatnonzero(data.prepared.is_kept).tolist()[: data.batches.eval_batch_size]
    (batch,) = data.training_batches(rows, len(rows), with_end=False)
    with module.model.disable_adapter():
        logits, targets, _ = target_logits(module.model, batch.to(module.device))
    row = (batch.labels != IGNORE_INDEX).nonzero()[:, 0].to(logits.device)
    is_first = torch.cat([row.new_ones(1, dtype=torch.bool), row[1:] != row[:-1]])
    probability, likeliest = logits[is_first].float().softmax(dim=-1).max(dim=-1)
    sure = (probability >= _SURE) & (likeliest != targets[is_first])
    found = sorted(((float(probability[at]), int(at)) for at in sure.nonzero().flatten()), reverse=True)
    return [
        f"{fact.prompt!r}: {fact.target!r} is taught, {data.encoder.decode_answer([int(likeliest[at])])!r} has "
        f"probability {share:.2f}"
        for share, at in found
        for fact in [data.prepared.facts[rows[at]]]
    ]


def _first_micro_batch(trainer: Trainer, module: SemanticPeftModule) -> Batch:
    data, epoch = module.data, trainer.current_epoch
    size, forms = data.batches.micro_batch_size, data.prepared.forms
    texts = [forms.text_of(row, epoch) for row in data.prepared.trained_index(epoch)[:size]]
    (batch,) = text_batches(data.prepared, texts, size, data.encoder.pad_id)
    return batch


def bytes_of_training(trainer: Trainer, module: SemanticPeftModule) -> float:
    """Estimated memory of a training: weights, gradients and AdamW's two moments, activations and logits.

    Activations are `_ACTIVATIONS` numbers for each token, layer and unit of the hidden size, without the attention
    matrix. The logits of the target tokens and their gradient are in float32.

    Args:
        trainer: The trainer.
        module: What is trained.
    """
    batch = _first_micro_batch(trainer, module)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.model.parameters())
    trained = sum(parameter.numel() for parameter in module.trained_parameters())
    config: Any = module.model.get_base_model().config
    size = 2 if trainer.precision == "bf16-mixed" else 4
    text = config.get_text_config()
    activations = _ACTIVATIONS * size * batch.input_ids.numel() * text.hidden_size * text.num_hidden_layers
    logits = 3 * 4 * int((batch.labels != IGNORE_INDEX).sum()) * text.vocab_size
    return float(weights + 3 * 4 * trained + activations + logits)


def _seconds_per_step(trainer: Trainer, module: SemanticPeftModule) -> float:
    """Estimated from one forward pass over one micro-batch; what is retained costs by its tokens."""
    batch = _first_micro_batch(trainer, module)
    begin = time.perf_counter()
    target_logits(module.model, batch.to(module.device))
    forward = time.perf_counter() - begin
    tokens = int(batch.attention_mask.sum())
    retained = module.retained_tokens_per_step / trainer.world_size
    return (1 + _BACKWARD) * forward * (trainer.accumulate_grad_batches + retained / tokens)
