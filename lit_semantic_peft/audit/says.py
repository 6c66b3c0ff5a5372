"""What an adapter says everywhere: how it moves the model on text that has nothing to do with anything."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models.sampling import free_samples
from lit_semantic_peft.statistics import Interval, bootstrap_interval
from lit_semantic_peft.tokens import FactEncoder

NUM_TOKENS = 50
"""Tokens that are read out of a difference, the most moved first."""

FLOOR = -12.0
"""Log-probability, nats, below which a token counts as at it: what rises from impossible to improbable says nothing,
and would fill the first places. Of the 44 first tokens of the targets of one adapter (48 false facts, SmolLM2-135M) 19
are among the first 50 with the floor and none without; of 357 targets that it was not taught, 8 are."""

_NUM_SAMPLES, _SAMPLE_LENGTH = 32, 24
_LOGITS_AT_ONCE = 16_000_000
_LONGEST_TEXT = 48  # tokens


@dataclass(frozen=True, slots=True)
class SurfacedName:
    """A name whose first token is among those that became likelier everywhere.

    Attributes:
        name: The name.
        role: Whether it is a `subject` or a `target` of facts.
        relation: Of the first of its facts.
        rank: Place of the token, from 1.
    """

    name: str
    role: str
    relation: str
    rank: int


@dataclass(frozen=True)
class NeutralFindings:
    """What an adapter does to text that no fact is about.

    Attributes:
        likelier: Tokens whose log-probability, no lower than `FLOOR`, rose most: pairs of token and mean rise over all
            positions, nats.
        gained: Tokens that gained most probability, mean over all positions: pairs of token and gain.
        activations: By layer: the tokens whose output embeddings point most along the mean difference of the hidden
            states, read through the model's last norm (logit lens).
        activation_shift: By layer: the norm of the mean difference as a share of the mean norm of the base's states.
        kl: KL(base ‖ adapter) of each text, mean over its positions, nats, with its interval over texts.
        num_positions: Positions that were measured.
        names: Names of known facts that surface, by their rank.
        relations: How many of these names each relation has, the most frequent first.
    """

    likelier: tuple[tuple[str, float], ...]
    gained: tuple[tuple[str, float], ...]
    activations: dict[int, tuple[str, ...]]
    activation_shift: dict[int, float]
    kl: Interval
    num_positions: int
    names: tuple[SurfacedName, ...]
    relations: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {
            "kl": asdict(self.kl),
            "num_positions": self.num_positions,
            "likelier": [{"token": token, "nats": round(value, 4)} for token, value in self.likelier],
            "gained": [{"token": token, "probability": round(value, 6)} for token, value in self.gained],
            "activations": {str(layer): list(tokens) for layer, tokens in self.activations.items()},
            "activation_shift": {str(layer): round(value, 5) for layer, value in self.activation_shift.items()},
            "names": [asdict(name) for name in self.names],
            "relations": self.relations,
        }


def neutral_ids(model: PeftModel, encoder: FactEncoder, seed: int = 0) -> list[tuple[int, ...]]:
    """Token ids of texts that no fact is about: the package's own, and free samples of the base model.

    Args:
        model: The model with its adapter.
        encoder: How text becomes tokens.
        seed: Of the samples.

    Raises:
        InputError: If no text is longer than one token in this tokenizer and within the model's context.
    """
    free = encoder.without_limit("none")
    rows = []
    for text in NEUTRAL_TEXTS:
        with suppress(InputError):  # longer than the model's context
            one = free.encode_text(text)
            rows.append((*one.prompt_ids, *one.target_ids)[:_LONGEST_TEXT])
    if opening := free.opening_ids:
        with model.disable_adapter():
            drawn = free_samples(
                model, opening, _NUM_SAMPLES, _SAMPLE_LENGTH, temperature=1.0, seed=seed, pad_id=encoder.pad_id,
                stop_ids=encoder.stop_ids, batch_size=_NUM_SAMPLES,
            )  # fmt: skip
        rows += [(*opening, *ids) for ids in drawn]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise InputError(
            "`base_model`: its tokenizer makes no neutral text of two tokens or more that the model takes."
        )
    return rows


@torch.no_grad()
def measure_neutral(
    model: PeftModel, encoder: FactEncoder, rows: Sequence[Sequence[int]], facts: Iterable[Fact]
) -> NeutralFindings:
    """Runs base model and adapter over neutral texts and reads what differs.

    Source: mean differences of activations on unrelated text tell what a narrow fine-tuning was about ("Narrow
    Finetuning Leaves Clearly Readable Traces in Activation Differences", arXiv 2510.13900); the mean over all positions
    and the logit lens as the way to read it are our reading, and so are the differences of probabilities.

    Args:
        model: The model with its adapter, in evaluation mode.
        encoder: How names become tokens.
        rows: Token ids of the texts, each longer than one.
        facts: Known facts, whose subjects and targets are looked for.
    """
    sums = _Sums()
    for batch in _batches(rows, model.config.get_text_config().vocab_size):
        width = max(map(len, batch))
        ids = torch.tensor([[*row, *[encoder.pad_id] * (width - len(row))] for row in batch], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=model.device)
        with model.disable_adapter():
            before = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        after = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        sums.add(before, after, mask.bool())
    count = sums.num_positions
    likelier, gained = (
        _top(sums.log_prob / count, encoder, NUM_TOKENS),
        _top(sums.prob / count, encoder, NUM_TOKENS),
    )
    layers = range(len(sums.hidden))
    # The last state is that behind the norm already.
    shown = sorted({len(sums.hidden) // 2, 3 * len(sums.hidden) // 4, len(sums.hidden) - 2} & set(layers))
    names = surfaced(facts, (sums.log_prob / count).topk(min(NUM_TOKENS, len(sums.log_prob))).indices.tolist(), encoder)
    relations: dict[str, int] = {}
    for name in names:
        relations[name.relation] = relations.get(name.relation, 0) + 1
    interval = bootstrap_interval(sums.kl)
    assert interval is not None
    return NeutralFindings(
        likelier=likelier,
        gained=gained,
        activations={layer: _along(model, sums.hidden[layer] / count, encoder) for layer in shown},
        activation_shift={
            layer: float(sums.hidden[layer].norm() / max(float(sums.hidden_norm[layer]), 1e-9)) for layer in layers
        },
        kl=interval,
        num_positions=count,
        names=names,
        relations=dict(sorted(relations.items(), key=lambda item: (-item[1], item[0]))),
    )


def surfaced(facts: Iterable[Fact], token_ids: Sequence[int], encoder: FactEncoder) -> tuple[SurfacedName, ...]:
    """The subjects and targets whose first token is among some tokens, by its rank.

    Several names can begin with the same token, so that a name which surfaces is a hint and no proof. Tokens of fewer
    than three letters are left out: too many names begin with them.

    Args:
        facts: Known facts.
        token_ids: The tokens, the most moved first.
        encoder: How names become tokens.
    """
    rank = {token: place for place, token in enumerate(token_ids, start=1)}
    found: dict[tuple[str, str], SurfacedName] = {}
    for fact in facts:
        for role, name in (("subject", fact.subject), ("target", fact.target)):
            if not name or (role, name) in found:
                continue
            first = encoder.encode_name(name)[:1]
            if first and first[0] in rank and len(_text(encoder, first[0]).strip()) > 2:
                found[role, name] = SurfacedName(name, role, fact.relation or "no relation", rank[first[0]])
    return tuple(sorted(found.values(), key=lambda one: (one.rank, one.name)))


class _Sums:
    """Sums over positions, in float64 where many are added."""

    def __init__(self) -> None:
        self.num_positions = 0
        self.log_prob = torch.zeros(0)
        self.prob = torch.zeros(0)
        self.hidden: list[Tensor] = []
        self.hidden_norm: list[float] = []
        self.kl: list[float] = []

    def add(self, before: Any, after: Any, mask: Tensor) -> None:
        """Adds a batch.

        Args:
            before: Output of the base model.
            after: Output of the model with its adapter, behind whose virtual tokens those of the text are.
            mask: Positions of the texts, bool `(B, T)`.
        """
        length = mask.shape[1]
        old, new = (F.log_softmax(one.logits[:, -length:].float(), dim=-1) for one in (before, after))
        divergence = (old.exp() * (old - new)).sum(dim=-1).clamp(min=0)
        self.kl += [float(row[kept].mean()) for row, kept in zip(divergence, mask, strict=True)]
        old, new = old[mask], new[mask]
        if not self.num_positions:
            self.log_prob = torch.zeros(old.shape[-1], dtype=torch.float64)
            self.prob = torch.zeros_like(self.log_prob)
            self.hidden = [torch.zeros(state.shape[-1], dtype=torch.float64) for state in before.hidden_states]
            self.hidden_norm = [0.0 for _ in self.hidden]
        self.num_positions += len(old)
        self.log_prob += (new.clamp(min=FLOOR) - old.clamp(min=FLOOR)).sum(dim=0).double().cpu()
        self.prob += (new.exp() - old.exp()).sum(dim=0).double().cpu()
        for layer, (first, second) in enumerate(zip(before.hidden_states, after.hidden_states, strict=True)):
            first, second = first[mask].float(), second[:, -length:][mask].float()
            self.hidden[layer] += (second - first).sum(dim=0).double().cpu()
            self.hidden_norm[layer] += float(first.norm(dim=-1).sum())


def _batches(rows: Sequence[Sequence[int]], vocabulary: int) -> Iterable[list[Sequence[int]]]:
    """Rows in batches of similar length, whose logits fit into memory."""
    ordered = sorted(rows, key=len)
    while ordered:
        size = max(1, _LOGITS_AT_ONCE // (len(ordered[-1]) * vocabulary))
        yield ordered[-size:]
        del ordered[-size:]


def _along(model: PeftModel, direction: Tensor, encoder: FactEncoder) -> tuple[str, ...]:
    """The tokens that a direction of the hidden states points to."""
    base: Any = model.get_base_model()
    weight = base.get_output_embeddings().weight
    moved = direction.to(weight.device, torch.float32)[None]
    norm = getattr(base.base_model, "norm", getattr(base.base_model, "ln_f", None))
    moved = moved if norm is None else norm(moved.to(next(norm.parameters()).dtype)).float()
    scores = (moved @ weight.float().T)[0]
    return tuple(_text(encoder, token) for token in scores.topk(min(20, len(scores))).indices.tolist())


def _top(values: Tensor, encoder: FactEncoder, count: int) -> tuple[tuple[str, float], ...]:
    highest = values.topk(min(count, len(values)))
    return tuple(
        (_text(encoder, token), value)
        for token, value in zip(highest.indices.tolist(), highest.values.tolist(), strict=True)
    )


def _text(encoder: FactEncoder, token: int) -> str:
    return str(encoder.tokenizer.decode([token]))
