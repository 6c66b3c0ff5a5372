"""The penalty of everything that is retained: one choice of texts per optimizer step, one gradient for all sources."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.data.ranks import from_first_rank
from lit_semantic_peft.data.rotation import rotating_choice
from lit_semantic_peft.models import target_logits
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import IGNORE_INDEX, Batch, EncodedFact, collate
from lit_semantic_peft.training.own_gradient import flattened, sum_over_ranks, unflattened
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.divergence import TopTokens, divergence_from, top_tokens, without_tokens
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource
from lit_semantic_peft.training.retain.teacher import StoredTeacher, store_teacher

logger = logging.getLogger(__name__)

_PASS_IN_TOKENS = 40
"""Tokens that cost as much as another pass on a CPU, where rows are padded no further. On a GPU a pass costs more than
any padding. Measured: SmolLM2-135M with LoRA on one core takes 0.25 s for a pass and 6 ms for each token."""


@dataclass(frozen=True)
class Retained:
    """A source with its texts.

    Attributes:
        source: The source.
        texts: All its texts.
        teacher: What the base model predicts in them; None to ask it in each step.
    """

    source: RetainSource
    texts: Sequence[RetainedText]
    teacher: StoredTeacher | None

    @property
    def per_step(self) -> int:
        """Texts of an optimizer step over all ranks."""
        return min(self.source.batch_size, len(self.texts))

    def teacher_of(self, text: int) -> TopTokens:
        """What the base model predicts in a text.

        Args:
            text: Its place.
        """
        assert self.teacher is not None
        return self.teacher.of(text)

    def chosen(self, step: int) -> list[int]:
        """Texts of an optimizer step, see `rotating_choice`; none in a step that the source leaves out.

        Args:
            step: Number of the optimizer step, from 0.
        """
        turn, place = divmod(step + 1, self.source.every)
        if place:
            return []
        return rotating_choice(range(len(self.texts)), self.per_step, turn - 1, self.source.seed)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A text of an optimizer step: which source's, and which of its texts."""

    source: int
    text: int


@dataclass(frozen=True, slots=True)
class Held:
    """Retained texts that ran.

    Attributes:
        penalty: This rank's share of Σ λ · mean divergence, a scalar with its graph.
        means: Its share of each source's mean divergence, float32 `(S,)`, without.
    """

    penalty: Tensor
    means: Tensor


class RetainPenalty:
    """Σ over the sources of λ times their mean divergence from the base model, on the texts of an optimizer step.

    A source with `every` n has texts in every n-th step, with n λ. Each mean is over the source's own chosen texts, so
    that it depends neither on the loss weights, nor on other sources, nor on how the step is split. Cost per optimizer
    step: one forward and one backward pass of the chosen texts, whose output head runs at the held positions only,
    shared out over the ranks; only their tokens where they run in a pass of the facts (`ForwardPass`).

    Args:
        retained: The sources with their texts.
        pad_id: Token id for padding; masked.
        batch_size: Most texts of a forward pass, which bounds the memory.
    """

    def __init__(self, retained: Sequence[Retained], pad_id: int, batch_size: int) -> None:
        self.retained = list(retained)
        self.pad_id = pad_id
        self._batch_size = batch_size

    @property
    def names(self) -> list[str]:
        """A log name for each source; a second one of a class is numbered."""
        names: list[str] = []
        for one in self.retained:
            before = sum(earlier.source.name == one.source.name for earlier in self.retained[: len(names)])
            names.append(f"{one.source.name}_{before + 1}" if before else one.source.name)
        return names

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens of an optimizer step's texts, over all ranks."""
        return sum(
            one.per_step * fmean(len(text.student) for text in one.texts) / one.source.every for one in self.retained
        )

    @property
    def weights(self) -> Tensor:
        """λ of each source in the steps that have its texts, float32 `(S,)`."""
        return torch.tensor([one.source.weight * one.source.every for one in self.retained])

    def chosen(self, step: int) -> list[_Chosen]:
        """The texts of an optimizer step, over all ranks, short ones first.

        Args:
            step: Number of the optimizer step, from 0.
        """
        chosen = [_Chosen(number, text) for number, one in enumerate(self.retained) for text in one.chosen(step)]
        return sorted(chosen, key=lambda one: (self._length(one), one.source, one.text))

    def gradient(
        self,
        model: PeftModel,
        parameters: Sequence[nn.Parameter],
        chosen: Sequence[_Chosen],
        precision: Callable[[], AbstractContextManager[None]],
    ) -> tuple[Tensor, Tensor]:
        """One rank's share of the means and of the gradient; the shares of all ranks add up to the whole.

        Evaluated in evaluation mode, so no random number is drawn; `.grad` is not touched.

        Args:
            model: The model with its adapter.
            parameters: The trained parameters, P numbers in all.
            chosen: The rank's share of the optimizer step's texts; may be empty.
            precision: Opens the context of a forward pass, for autocast.

        Returns:
            Each source's sum of divergences over the number of its texts in the step, without λ, `(S,)`; and the
            gradient of their sum, each times its λ, `(P,)`.
        """
        device = parameters[0].device
        means = torch.zeros(len(self.retained), device=device)
        gradient = torch.zeros(sum(parameter.numel() for parameter in parameters), device=device)
        with undisturbed(model):
            for texts in self._batches(chosen, on_cpu=device.type == "cpu"):
                batch = self.batch(texts).to(device)
                with precision():
                    held = self.held(model, texts, batch, target_logits(model, batch)[0])
                gradient += flattened(torch.autograd.grad(held.penalty, parameters, allow_unused=True), parameters)
                means += held.means
        return means, gradient

    def batch(self, chosen: Sequence[_Chosen]) -> Batch:
        """What the student reads of some texts, on the CPU; at least one column where there is no text.

        Args:
            chosen: The texts.
        """
        if not chosen:
            return collate([EncodedFact((self.pad_id,), ())], [0], self.pad_id)
        return collate([self._text(one).student for one in chosen], range(len(chosen)), self.pad_id, with_end=False)

    def held(self, model: PeftModel, chosen: Sequence[_Chosen], batch: Batch, logits: Tensor) -> Held:
        """The penalty of some texts, from a pass of the model.

        Args:
            model: The model, asked again for what the teacher of a source predicts where that is not stored.
            chosen: The texts, of any sources.
            batch: As `batch` gives them.
            logits: At their held positions `(N, V)`.
        """
        device = logits.device
        targets = batch.labels[batch.labels != IGNORE_INDEX]
        row = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
        kind_of = [self._kind(one) for one in chosen]
        means = torch.zeros(len(self.retained), device=device)
        penalty = logits[:0].sum().float()
        weights = self.weights.to(device)
        kinds = sorted(set(kind_of))
        for kind in kinds:
            places = [place for place, one in enumerate(kind_of) if one == kind]
            texts = [chosen[place] for place in places]
            counted = torch.isin(row, torch.tensor(places, device=device))
            of_kind = logits if len(kinds) == 1 else logits[counted]  # not a copy without need
            per_text = self._divergence(model, texts, of_kind, targets[counted])
            per_text = per_text / torch.tensor([self.retained[one.source].per_step for one in texts], device=device)
            source = torch.tensor([one.source for one in texts], device=device)
            penalty = penalty + (weights[source] * per_text).sum()
            means.index_add_(0, source, per_text.detach())
        return Held(penalty, means)

    def runs_beside(self, trainer: Trainer) -> bool:
        """Whether the coming optimizer step has texts, and no more than may run in one pass; the same on all ranks.

        Args:
            trainer: The trainer.
        """
        return 0 < len(self.chosen(trainer.global_step)) <= self._batch_size * trainer.world_size

    def share(self, trainer: Trainer) -> list[_Chosen]:
        """This rank's texts of the coming optimizer step.

        Args:
            trainer: The trainer.
        """
        return self.chosen(trainer.global_step)[trainer.global_rank :: trainer.world_size]

    def of_step(
        self, trainer: Trainer, model: PeftModel, parameters: Sequence[nn.Parameter], means: Tensor | None = None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The penalty of the coming optimizer step, each rank a share of its texts. A collective.

        Args:
            trainer: The trainer.
            model: The model with its adapter.
            parameters: The trained parameters.
            means: Of `Held`, where this rank's texts ran beside facts, so that their gradient is in that of the facts.

        Returns:
            Scalars over all ranks, nats per token: `retain_kl`, what is added to the loss, and `retain_kl/<source>`,
            a source's mean divergence without λ, of those with texts in this step; nothing in a step without any; and
            the gradient of the former that is still to be added, one tensor for each parameter.
        """
        in_step = self.chosen(trainer.global_step)
        if not in_step:
            return {}, [torch.zeros_like(parameter) for parameter in parameters]
        if means is None:
            texts, precision = self.share(trainer), trainer.precision_plugin.train_step_context
            means, gradient = self.gradient(model, parameters, texts, precision)
            total = sum_over_ranks(trainer, torch.cat([means, gradient]))
            means, gradient = total[: len(means)], total[len(means) :]
        else:
            means = sum_over_ranks(trainer, means)
            gradient = means.new_zeros(sum(parameter.numel() for parameter in parameters))
        measured = {"retain_kl": (self.weights.to(means) * means).sum()}
        sources = {one.source for one in in_step}
        measured.update({f"retain_kl/{self.names[source]}": means[source] for source in sorted(sources)})
        return measured, unflattened(gradient, parameters)

    def _text(self, chosen: _Chosen) -> RetainedText:
        return self.retained[chosen.source].texts[chosen.text]

    def _length(self, chosen: _Chosen) -> int:
        return len(self._text(chosen).student)

    def _batches(self, chosen: Sequence[_Chosen], *, on_cpu: bool) -> Iterator[list[_Chosen]]:
        """Texts of one kind of teacher and of similar length together."""
        batch: list[_Chosen] = []
        for one in sorted(chosen, key=self._kind):
            padding = len(batch) * (self._length(one) - self._length(batch[-1])) if batch else 0
            if batch and (
                len(batch) == self._batch_size
                or self._kind(one) != self._kind(batch[0])
                or (on_cpu and padding > _PASS_IN_TOKENS)
            ):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _kind(self, chosen: _Chosen) -> tuple[int, bool]:
        """What the texts of a batch must have in common: tokens that are kept, and whether the target is dropped."""
        source = self.retained[chosen.source].source
        return source.top_k or 0, source.drops_target

    def _divergence(self, model: PeftModel, chosen: Sequence[_Chosen], logits: Tensor, targets: Tensor) -> Tensor:
        """Mean divergence of each text of one kind over its held positions, float32 `(B,)`."""
        first = self.retained[chosen[0].source]
        if first.teacher is None:
            read = [self._text(one).teacher for one in chosen]
            batch = collate(read, range(len(read)), self.pad_id, with_end=False).to(logits.device)
            with torch.no_grad(), model.disable_adapter(), modes_restored(model):
                predicted = target_logits(model.eval(), batch)[0]
            teacher = top_tokens(without_tokens(predicted, targets) if first.source.drops_target else predicted, None)
        else:
            stored = [self.retained[one.source].teacher_of(one.text) for one in chosen]
            teacher = TopTokens.cat(stored).to(logits.device)
        student = without_tokens(logits, targets) if first.source.drops_target else logits
        per_position = divergence_from(teacher, student)
        count = torch.tensor([self._text(one).student.num_target_tokens for one in chosen], device=logits.device)
        row = torch.arange(len(chosen), device=logits.device).repeat_interleave(count)
        return torch.zeros(len(chosen), device=logits.device).index_add(0, row, per_position) / count


def with_texts(source: RetainSource, context: RetainContext) -> Retained:
    """A source with its texts and their teacher's predictions. A collective.

    Args:
        source: The source.
        context: What it works with.
    """
    texts = from_first_rank(lambda: list(source.texts(context)))
    logger.info("Held still: %d texts of %s", len(texts), source.in_short)
    k = source.top_k
    if k is None or not texts:
        return Retained(source, texts, None)
    top = from_first_rank(lambda: store_teacher(context, texts, k, drops_target=source.drops_target))
    return Retained(source, texts, StoredTeacher(top, np.cumsum([one.student.num_target_tokens for one in texts])))
