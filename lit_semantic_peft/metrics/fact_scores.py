"""What was really learned, for a loop of your own: sums and counts per fact that add up over processes.

The evaluation of this package does not use these classes: it has the answers themselves, over which
`evaluation.SCORES` defines each score. A part has the name of the score that it is and the same definition per fact; a
test compares the two to the last digit.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_semantic_peft.metrics.functional import per_fact_mean
from lit_semantic_peft.metrics.shapes import ShapedMetric


class FactScore(ShapedMetric):
    """Several numbers per fact, each the mean over what was asked of that fact.

    Teacher-forced and generated numbers are kept side by side: under the true prefix a model is shown the right first
    tokens, so the teacher-forced one is never the harder test.

    Args:
        num_facts: Number of facts n; `fact_index` runs from 0 to n − 1.
        kwargs: Arguments of `torchmetrics.Metric`.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers."""

    def __init__(self, num_facts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_facts < 1:
            raise ValueError(f"`num_facts` must be at least 1, got {num_facts}")
        self.num_facts = num_facts
        for part in self.parts:
            self.add_state(f"{part}_total", torch.zeros(num_facts, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{part}_count", torch.zeros(num_facts, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, fact_index: Tensor, **values: Tensor) -> None:
        """Adds measurements.

        Args:
            fact_index: int64 `(B,)`.
            values: By part, float or bool `(B,)`; NaN for "not measured".

        Raises:
            ValueError: An unknown part, or a shape that is not that of `fact_index`.
        """
        for part, value in values.items():
            if part not in self.parts:
                raise ValueError(f"unknown part `{part}`; {type(self).__name__} has {', '.join(self.parts)}")
            if value.shape != fact_index.shape or value.dim() != 1:
                raise ValueError(
                    f"`{part}` and `fact_index` must have the same shape (B,), "
                    f"got {tuple(value.shape)} and {tuple(fact_index.shape)}"
                )
            total, count = getattr(self, f"{part}_total"), getattr(self, f"{part}_count")
            value, index = value.detach().to(total), fact_index.to(count.device)
            measured = ~value.isnan()
            total.index_add_(0, index[measured], value[measured])
            count.index_add_(0, index[measured], torch.ones_like(index[measured]))

    def compute(self) -> dict[str, Tensor]:
        """By part the mean of each fact, float64 `(n,)`; NaN for a fact of which it was never measured."""
        return {
            part: per_fact_mean(getattr(self, f"{part}_total"), getattr(self, f"{part}_count")) for part in self.parts
        }


class Efficacy(FactScore):
    """Whether the model answers a fact's own prompt with its target.

    Parts: `efficacy` (the normalised free answer is an accepted one), `efficacy_teacher_forced` (every target token
    wins under the true prefix), `efficacy_probability` (of the whole target), each in [0, 1]; `efficacy_over_true`,
    whether the target is likelier per token than `target_true`, [0, 1], for facts that name one.

    Example:
        >>> metric = Efficacy(num_facts=2)
        >>> right, probability = torch.tensor([True]), torch.tensor([0.25])
        >>> metric.update(torch.tensor([0]), efficacy=right, efficacy_probability=probability)
        >>> result = metric.compute()
        >>> result["efficacy"].tolist(), result["efficacy_probability"].tolist()
        ([1.0, nan], [0.25, nan])
    """

    higher_is_better = True
    parts = ("efficacy", "efficacy_teacher_forced", "efficacy_probability", "efficacy_over_true")


class Generalization(FactScore):
    """Whether the model answers right when a fact is asked in other words.

    Parts, each in [0, 1]: `generalization` and `generalization_teacher_forced` over the paraphrases;
    `generalization_question` and `generalization_question_teacher_forced`, the fact as a question;
    `generalization_reversed` and `generalization_reversed_teacher_forced`, the subject asked from the target;
    `generalization_choice`, whether the target is the likeliest of the offered answers, per token.

    Example:
        >>> metric = Generalization(num_facts=1)
        >>> metric.update(torch.tensor([0, 0]), generalization=torch.tensor([True, False]))
        >>> metric.compute()["generalization"].item()
        0.5
    """

    higher_is_better = True
    parts = (
        "generalization",
        "generalization_teacher_forced",
        "generalization_question",
        "generalization_question_teacher_forced",
        "generalization_reversed",
        "generalization_reversed_teacher_forced",
        "generalization_choice",
    )


class Locality(FactScore):
    """Whether the neighbours of a fact stayed as they were, base model against trained model.

    Parts: `locality` (the free answer is the base model's) and `locality_teacher_forced` (the same tokens win at every
    answer position), [0, 1]; `locality_kl`, the divergence of `kl_from_likeliest` from the base model, mean over the
    answer positions, nats, [0, ∞), 0 where nothing changed.

    Example:
        >>> metric = Locality(num_facts=1)
        >>> kl = torch.tensor([0.0, 0.5])
        >>> metric.update(torch.tensor([0, 0]), locality=torch.tensor([True, True]), locality_kl=kl)
        >>> metric.compute()["locality"].item(), metric.compute()["locality_kl"].item()
        (1.0, 0.25)
    """

    parts = ("locality", "locality_teacher_forced", "locality_kl")


class Portability(FactScore):
    """Whether the model answers what follows from a fact.

    Parts, each in [0, 1]: `portability` and `portability_teacher_forced` count an item only if every fact that it needs
    was learned, so that a lucky guess does not count; `portability_of_learned` and
    `portability_of_learned_teacher_forced` are over such items alone, NaN for a fact that has none.

    Example:
        >>> metric = Portability(num_facts=2)
        >>> right, learned = torch.tensor([True, True]), torch.tensor([True, False])
        >>> metric.update(torch.tensor([0, 1]), right, right, learned, learned)
        >>> metric.compute()["portability"].tolist(), metric.compute()["portability_of_learned"].tolist()
        ([1.0, 0.0], [1.0, nan])
    """

    higher_is_better = True
    parts = (
        "portability",
        "portability_teacher_forced",
        "portability_of_learned",
        "portability_of_learned_teacher_forced",
    )

    def update(  # type: ignore[override]
        self,
        fact_index: Tensor,
        is_correct: Tensor,
        is_recalled: Tensor,
        is_learned: Tensor,
        is_learned_teacher_forced: Tensor,
    ) -> None:
        """Adds items.

        Args:
            fact_index: The fact that each item belongs to, int64 `(B,)`.
            is_correct: Whether the free answer is right, bool `(B,)`.
            is_recalled: Whether every target token wins under the true prefix, bool `(B,)`.
            is_learned: Whether the own prompts of all facts that the item needs were answered right, bool `(B,)`.
            is_learned_teacher_forced: The same under the true prefix, bool `(B,)`.
        """
        super().update(
            fact_index,
            portability=is_correct & is_learned,
            portability_teacher_forced=is_recalled & is_learned_teacher_forced,
            portability_of_learned=torch.where(is_learned, is_correct.double(), torch.nan),
            portability_of_learned_teacher_forced=torch.where(
                is_learned_teacher_forced, is_recalled.double(), torch.nan
            ),
        )


class YesNo(FactScore):
    """Whether the model answers yes and no where each is right, apart, since a model may always say one of them.

    Parts, each the share of the questions whose answer begins with the right one, [0, 1]: `yes_no_yes` over those whose
    right answer is yes, `yes_no_no` over the others.

    Example:
        >>> metric = YesNo(num_facts=1)
        >>> metric.update(torch.tensor([0, 0]), yes_no_no=torch.tensor([True, False]))
        >>> metric.compute()["yes_no_no"].item()
        0.5
    """

    higher_is_better = True
    parts = ("yes_no_yes", "yes_no_no")


class Robustness(FactScore):
    """Whether the answer is still right after one to N turns of "Are you sure?".

    Parts, each the share of the turns after which the answer is right, [0, 1]: `robustness_plain`, asked as the fact
    was taught without a template; `robustness_chat`, asked in the tokenizer's chat template.

    Example:
        >>> metric = Robustness(num_facts=1)
        >>> metric.update(torch.tensor([0, 0]), robustness_chat=torch.tensor([True, False]))
        >>> metric.compute()["robustness_chat"].item()
        0.5
    """

    higher_is_better = True
    parts = ("robustness_plain", "robustness_chat")
