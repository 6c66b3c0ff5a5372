"""What a fact weighs: as planned, in an optimizer step, and on average over a training. Only this module decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.data import KnowledgeDataModule, from_all_ranks
from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.models.objective import Outputs
from lit_semantic_peft.semantics import Distance, TokenWeighting, Weighting
from lit_semantic_peft.semantics.step_losses import losses_and_online_weights
from lit_semantic_peft.tokens import Batch


@dataclass(frozen=True, slots=True)
class UsedWeights:
    """The rows of one rank in an optimizer step, and what they weighed in its loss.

    Attributes:
        fact_index: int64 `(B,)`.
        weight: float32 `(B,)`, ≥ 0.
        is_filler: bool `(B,)`, see `Batch`.
        text_index: int64 `(B,)`, the texts that ran, see `Batch`.
    """

    fact_index: Tensor
    weight: Tensor
    is_filler: Tensor
    text_index: Tensor


class LossWeights:
    """The loss weight of each fact: planned × factor × online.

    - *planned*: of the data module's weighting, by epoch and progress, see `PlannedWeights`. It comes with the batch.
    - *factor*: set by a callback that weighs facts anew during training (`InterferenceWeighting`); 1 until then.
    - *online*: of an `Online` weighting, from the step's own logits; 1 for any other weighting.

    What each fact weighed in the loss is noted: for the optimizer step that runs, and as means over the epoch and over
    the whole training. Factors and means go on after a resume. A batch is never changed.

    Args:
        data: After `setup`, in a trainer.

    Attributes:
        factor: float32 `(n,)`, ≥ 0, by fact index; None for 1. `set_factor` changes it.
    """

    def __init__(self, data: KnowledgeDataModule) -> None:
        self._data = data
        self._num_facts = num_facts = len(data.prepared.facts)
        self.factor: Tensor | None = None
        self._step: list[UsedWeights] = []
        self._of_training, self._of_epoch = _Sums.zero(num_facts), _Sums.zero(num_facts)

    def planned(self, rows: Sequence[int], epoch: int | None = None) -> np.ndarray:
        """Planned weights in the coming optimizer step, which a `Scheduled` weighting moves.

        Args:
            rows: Fact indices.
            epoch: The epoch over whose facts the weights have mean 1; the current one where None.

        Returns:
            float64 `(len(rows),)`, without the factors of the step.
        """
        trainer = self._data.trainer
        assert trainer is not None
        assert trainer.train_dataloader is not None
        progress = trainer.train_dataloader.sampler.progress_at(trainer.global_step)
        return self._data.prepared.weights.at(rows, trainer.current_epoch if epoch is None else epoch, progress)

    def before_online(self, rows: Sequence[int]) -> np.ndarray:
        """Planned × factor in the coming optimizer step: all of the weight that is known before the step.

        Args:
            rows: Fact indices.

        Returns:
            float64 `(len(rows),)`.
        """
        planned = self.planned(rows)
        return planned if self.factor is None else planned * self.factor[list(rows)].double().numpy()

    def set_factor(self, rows: Sequence[int], factor: np.ndarray) -> None:
        """Changes the factor of some facts, from the coming optimizer step on.

        Args:
            rows: Fact indices, each once.
            factor: `(len(rows),)`, ≥ 0; kept in float32.
        """
        so_far = torch.ones(self._num_facts) if self.factor is None else self.factor
        self.factor = so_far.index_copy(0, torch.tensor(rows), torch.as_tensor(factor, dtype=torch.float32))

    def nll_and_weight(self, model: PeftModel, batch: Batch, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """ℓ_i and w_i of a micro-batch, from one forward pass; notes w_i.

        Args:
            model: The model, in training mode.
            batch: The facts.
            outputs: What `target_logits` gave for the batch.

        Returns:
            Mean losses of the target tokens, as `token_weighting` has them, nats per token, float32 `(B,)`, with a
            graph, and loss weights, float32 `(B,)`, without.
        """
        weight = batch.loss_weight
        if self.factor is not None:
            weight = weight * self.factor[batch.fact_index.cpu()].to(weight)
        data = self._data
        nll, online = losses_and_online_weights(
            model,
            batch,
            data.weighting,
            data.selection.token_weighting,
            data.distances[0],
            has_end=data.encoding.append_eos,
            outputs=outputs,
        )
        if online is not None:
            weight = weight * online.to(weight)
        self._step.append(UsedWeights(batch.fact_index, weight, batch.is_filler, batch.text_index))
        return nll, weight

    def of_step(self) -> UsedWeights:
        """What this rank's facts weigh in the optimizer step that runs, micro-batch by micro-batch."""
        return UsedWeights(*(torch.cat([getattr(part, name) for part in self._step]) for name in UsedWeights.__slots__))

    def end_step(self) -> None:
        """Adds the weights of the optimizer step to those of the epoch and of the training."""
        step = self.of_step()
        counted = ~step.is_filler.cpu()
        rows, weight = step.fact_index.cpu()[counted], step.weight.cpu()[counted]
        self._of_training.add(rows, weight)
        self._of_epoch.add(rows, weight)
        self._step = []

    def start_epoch(self) -> None:
        """Discards the weights of the epoch before, and those of an optimizer step that it may have left unfinished."""
        self._step = []
        self._of_epoch = _Sums.zero(self._num_facts)

    def used(self) -> list[float | None]:
        """Mean over the training of the weight that a fact had in the loss, of all ranks. A collective.

        Returns:
            One number for each fact, without unit, ≥ 0; None for a fact that was in no optimizer step.
        """
        return self._of_training.of_all_ranks().means()

    def used_in_epoch(self) -> list[float | None]:
        """As `used`, over the current epoch. A collective."""
        return self._of_epoch.of_all_ranks().means()

    def state_dict(self) -> dict[str, Any]:
        """The factors, and the sums over all ranks, for the checkpoint. A collective."""
        return {
            "factor": self.factor,
            "training": vars(self._of_training.of_all_ranks()),
            "epoch": vars(self._of_epoch.of_all_ranks()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], rank: int) -> None:
        """Restores the factors and sums of a checkpoint.

        Args:
            state_dict: From `state_dict`.
            rank: This rank; the first one takes over the sums of all.
        """
        self.factor = state_dict["factor"]
        if rank == 0:
            self._of_training = _Sums(**{name: value.clone() for name, value in state_dict["training"].items()})
            self._of_epoch = _Sums(**{name: value.clone() for name, value in state_dict["epoch"].items()})


@dataclass(frozen=True)
class _Sums:
    """Each fact's weights in optimizer steps, added up on one rank.

    In float64 and on the CPU: sums of float32 are exact there, in whatever order they come.
    """

    total: Tensor  # float64 (n,)
    count: Tensor  # int64 (n,)

    @classmethod
    def zero(cls, num_facts: int) -> "_Sums":
        return cls(torch.zeros(num_facts, dtype=torch.float64), torch.zeros(num_facts, dtype=torch.long))

    def add(self, rows: Tensor, weight: Tensor) -> None:
        self.total.index_add_(0, rows, weight.double())
        self.count.index_add_(0, rows, torch.ones_like(rows))

    def of_all_ranks(self) -> "_Sums":
        ranks = from_all_ranks((self.total, self.count))
        return _Sums(*(torch.stack(parts).sum(dim=0) for parts in zip(*ranks, strict=True)))

    def means(self) -> list[float | None]:
        pairs = zip(self.total.tolist(), self.count.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]


def weighting_identity(data: KnowledgeDataModule) -> dict[str, str]:
    """The settings of the weightings that must be equal when a training is resumed.

    Weights that come from the base model are compared as numbers instead; online weights only have settings.

    Args:
        data: The data module.

    Returns:
        Settings as text, by the name under which a user sets them.
    """
    token_weighting = data.selection.token_weighting
    of_tokens = {} if token_weighting is None else {"data.selection.token_weighting": _described(token_weighting)}
    if not data.weighting.is_online:
        return {"data.selection.weighting": "of the base model", **of_tokens}
    return {
        "data.selection.weighting": _described(data.weighting),
        "data.selection.distance": str(identity(data.distances[0])),
        **of_tokens,
    }


def _described(weighting: Weighting | TokenWeighting | Distance) -> str:
    """Class and settings, such as `Online(weighting=Focal(gamma=2.0))`."""
    settings = {
        name: _described(value) if isinstance(value, Weighting | Distance) else value
        for name, value in sorted(vars(weighting).items())
        if isinstance(value, Weighting | Distance | float | int | str | None)
    }
    return f"{type(weighting).__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"
