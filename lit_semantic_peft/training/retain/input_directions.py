"""Keeps the adapter out of the directions that ordinary text takes through the model: nothing there can change."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from lit_semantic_peft.arguments import require_seed
from lit_semantic_peft.data.ranks import from_first_rank
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import target_logits
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.own_samples import OwnSamples
from lit_semantic_peft.training.retain.source import HeldStill

logger = logging.getLogger(__name__)

_MOMENTS_BYTES = 2 * 2**30
"""Of the second moments that are held at once; where all layers' need more, the samples are read several times."""


class InputDirections(HeldStill):
    """The directions in which the inputs of adapted layers lie on the base model's own samples; LoRA cannot see them.

    With C = mean of x xᵀ over all tokens but a sample's first and last, x the layer's input scaled to length 1, U the
    fewest eigenvectors of C that hold `energy` of its trace (at most d_in − r of them) and ΔW = s·B·A, A becomes
    A (I − U Uᵀ), scaled to the norm that it had, when training begins, and A (I − U Uᵀ) after each optimizer step. So
    ΔW u = 0 for every held direction u: what text of the kind of the samples shares is left alone, by construction
    and not by a penalty, and what is learned lies in the rest of x. Cost: a forward pass over the samples (several
    for large models, so that second moments take at most 2 GiB at once) and an eigendecomposition per layer input,
    once; then 4·r·d_in·k operations a layer in each step for k held directions, and k·d_in numbers of memory for
    each layer input. Source: our reading, for LoRA, of projecting a weight's change onto what other inputs do not
    use (GPM, arXiv 2103.09762; AlphaEdit, arXiv 2410.02355; LoRA-Null, arXiv 2503.02659).

    Args:
        energy: Share of the inputs' energy that is held, in (0, 1).
        num_samples: How many of the base model's own samples are read, ≥ 1.
        length: Longest sample, in tokens, ≥ 3.
        seed: Of the samples.

    Raises:
        InputError: If a setting is out of its range; before a training, if the adapter is not LoRA, or is DoRA; when
            training begins, if the tokenizer has no token to begin with.
    """

    def __init__(self, energy: float = 0.9, num_samples: int = 256, length: int = 16, seed: int = 0) -> None:
        self.energy = energy
        self.num_samples = num_samples
        self.length = length
        self.seed = seed
        if not 0 < energy < 1:
            raise InputError(f"`{self.kind}.energy` must be in (0, 1), got {energy}. To hold none leave it out.")
        require_seed(seed, f"{self.kind}.seed")
        self.require_at_least(1, "num_samples")
        self.require_at_least(3, "length")

    @property
    @override
    def in_short(self) -> str:
        return f"{self.kind} ({self.energy:.0%})"

    def held(self, context: RetainContext, *, begins: bool) -> "HeldDirections":
        """Finds the directions, and keeps the adapter out of them. A collective.

        Args:
            context: The base model, the tokenizer, the cache.
            begins: Whether the adapter is new; one that goes on from a checkpoint is out of them.

        Raises:
            InputError: If the tokenizer has no token to begin with.
        """
        layers = lora_layers(context.model)
        found = from_first_rank(lambda: self._directions(context, layers))
        held = HeldDirections(
            [(layers[name], found.basis[of].to(layers[name].device)) for name, of in found.of.items()]
        )
        if begins:
            held.project(keep_norm=True)
        shares = [basis.shape[1] / basis.shape[0] for _, basis in held.pairs]
        logger.info(
            "Held still: %.0f %% of what is in the inputs of %d layers, %.0f to %.0f %% of their directions",
            100 * self.energy, len(shares), 100 * min(shares), 100 * max(shares),
        )  # fmt: skip
        return held

    def _directions(self, context: RetainContext, layers: Mapping[str, nn.Parameter]) -> "_Directions":
        samples = OwnSamples(num_samples=self.num_samples, length=self.length, seed=self.seed).texts(context)
        # The output head runs at the last token only.
        read = [one.student.prompt_ids + one.student.target_ids for one in samples]
        rows = [EncodedFact(ids[:-1], ids[-1:]) for ids in read if len(ids) > 2]
        rank = max(weight.shape[0] for weight in layers.values())
        found = _Directions({}, {})
        for names in _groups(layers):
            seen = _SecondMoments(context.model, names)
            with context.base_model() as model, seen.watching():
                for _, batch in context.batches(rows, "Directions of the base model's inputs"):
                    seen.counts = batch.attention_mask[:, 2:].bool()
                    target_logits(model, batch)
            found.of.update(seen.leader)
            found.basis.update((name, _leading(c, self.energy, rank)) for name, c in seen.moments.items())
        return found


@dataclass(frozen=True)
class HeldDirections:
    """What an adapter is kept out of.

    Attributes:
        pairs: A of each layer, `(r, d_in)`, and an orthonormal basis of the held directions of its input, `(d_in, k)`.
    """

    pairs: Sequence[tuple[nn.Parameter, Tensor]]

    @torch.no_grad()
    def project(self, *, keep_norm: bool = False) -> None:
        """A becomes A (I − U Uᵀ).

        Args:
            keep_norm: Whether A is scaled to the norm that it had.
        """
        for weight, basis in self.pairs:
            norm = weight.norm()
            weight.sub_((weight.to(basis) @ basis) @ basis.T)
            if keep_norm:
                weight.mul_(norm / weight.norm())


@dataclass(frozen=True)
class _Directions:
    """Held directions of the distinct inputs, and of which layer the input of each layer is named after."""

    of: dict[str, str]
    basis: dict[str, Tensor]


def lora_layers(model: PeftModel) -> dict[str, nn.Parameter]:
    """A of each LoRA layer that reads vectors, `(r, d_in)`, by the layer's name.

    Args:
        model: The model with its adapter.
    """
    return {
        name: module.lora_A[model.active_adapter].weight
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and isinstance(module.get_base_layer(), nn.Linear | Conv1D)
        and model.active_adapter in module.lora_A
    }


def _groups(layers: Mapping[str, nn.Parameter]) -> Iterator[list[str]]:
    """Names of layers, in order, in groups whose second moments have room in `_MOMENTS_BYTES`."""
    group: list[str] = []
    size = 0
    for name, weight in layers.items():
        needed = 4 * weight.shape[1] ** 2
        if group and size + needed > _MOMENTS_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


class _SecondMoments:
    """Sums of x xᵀ over the tokens that are read, by layer; layers that read the same tensor share one."""

    def __init__(self, model: PeftModel, layers: Sequence[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in layers}
        self._read: list[tuple[Tensor, str]] = []
        self.leader: dict[str, str] = {}
        self.moments: dict[str, Tensor] = {}
        self.counts = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(partial(self._see, name)).remove)
            yield

    def _see(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        read: Tensor = args[0]
        if name not in self.leader:
            same = (leader for tensor, leader in self._read if tensor is read)
            self.leader[name] = next(same, name)
            self._read = [*self._read[-8:], (read, self.leader[name])]  # layers of one input run close together
        if self.leader[name] == name:
            # Experts read the tokens that are routed to them, not rows of tokens: there all count.
            rows = read[:, 1:][self.counts] if read.ndim == 3 else read
            x = nn.functional.normalize(rows.float(), dim=-1)
            moments = x.T @ x
            self.moments[name] = self.moments[name] + moments if name in self.moments else moments


def _leading(moments: Tensor, energy: float, rank: int) -> Tensor:
    """The fewest leading eigenvectors with a share of the trace; so many directions as the rank are left."""
    values, vectors = torch.linalg.eigh(moments)
    share = values.flip(0).cumsum(0) / values.sum()
    number = min(int((share < energy).sum()) + 1, len(values) - min(rank, len(values) - 1))
    leading: Tensor = vectors[:, -number:].cpu().contiguous()
    return leading
