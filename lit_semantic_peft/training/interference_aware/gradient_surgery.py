"""Groups of facts whose gradients conflict: the conflicting part of each is removed before the step."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lit_semantic_peft.arguments import require_seed
from lit_semantic_peft.data.loaders import text_batches
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_cosine
from lit_semantic_peft.models import fact_nll
from lit_semantic_peft.training.identity import TrainingCallback
from lit_semantic_peft.training.interference_aware.clusters import agreement_clusters
from lit_semantic_peft.training.interference_aware.fact_sample import agreed_gradient_matrix, trained_sample
from lit_semantic_peft.training.module import SemanticPeftModule
from lit_semantic_peft.training.own_gradient import flattened, sum_over_ranks, unflattened

Groups = Literal["relation", "conflict", "fact"]


def surgery_coefficients(
    gradient_dot: np.ndarray, generator: np.random.Generator, *, project: bool = True, unit_norm: bool = False
) -> np.ndarray:
    """The coefficient of each group's gradient in the step: the surgery's result is Σ_j c_j g_j.

    - `unit_norm`: g_j becomes (m / ‖g_j‖) g_j, m the mean norm, so that every group pulls equally hard and the step
      keeps its size. Our reading.
    - `project`: for each group i, g_i' starts as g_i; for every other group j in random order, where ⟨g_i', g_j⟩ < 0,
      g_i' loses its part along g_j: g_i' ← g_i' − (⟨g_i', g_j⟩ / ‖g_j‖²) g_j. The step is Σ_i g_i'. Source: PCGrad,
      Algorithm 1 of Yu et al. 2020 (arXiv 2001.06782). With two groups the step lowers both losses to first order.

    Everything that projecting needs are inner products, so no gradient is touched here. Range: c_j ≥ 1 for `project`
    alone; ≥ 0 in any case. Cost: O(k³) for k groups and no pass over the model.

    Args:
        gradient_dot: ⟨g_i, g_j⟩, float `(k, k)`.
        generator: Of the order in which a group meets the others.
        project: Whether to project.
        unit_norm: Whether to equalise the norms, before projecting.

    Returns:
        float64 `(k,)`. A group without gradient keeps 1.

    Example:
        >>> gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
        >>> coefficients = surgery_coefficients(gradients @ gradients.T, np.random.default_rng(0))
        >>> coefficients.tolist(), (coefficients @ gradients).tolist()
        ([2.0, 1.5], [0.5, 1.5])
    """
    dot = np.asarray(gradient_dot, dtype=np.float64)
    norm = np.sqrt(dot.diagonal().clip(min=0))
    has_gradient = norm > 0
    scale = np.ones(len(dot))
    if unit_norm and has_gradient.any():
        scale[has_gradient] = norm[has_gradient].mean() / norm[has_gradient]
        dot = dot * np.outer(scale, scale)
    if not project:
        return scale
    total = np.zeros(len(dot))
    for group in range(len(dot)):
        mixture = np.zeros(len(dot))  # g_i' = Σ_j mixture_j g_j
        mixture[group] = 1.0
        for other in generator.permutation(len(dot)):
            along = mixture @ dot[:, other]
            if other != group and along < 0:
                mixture[other] -= along / dot[other, other]
        total += mixture
    return total * scale


class GradientSurgery(TrainingCallback):
    """Removes conflicts between the groups of an optimizer step: PCGrad, gradients of equal norm, or both.

    The gradient of Σ w_i ℓ_i / S, of each fact in the form that the step teaches, is the sum of the groups' gradients;
    it is replaced by the combination of `surgery_coefficients`. Where no two groups conflict, and the norms are left
    alone, the step is the plain one. Penalties (`model.retain`, AdaLoRA's) are added afterwards, untouched. Without
    dropout the result does not depend on how the step is split into micro-batches and processes. A step with facts of
    one group only is left alone.

    Cost: about one more forward and backward pass of the step's facts, and memory for one gradient per group of the
    step. `groups: conflict` adds about one forward and backward pass of `num_facts` facts per measurement.

    Logged metrics:

    - `train/group_conflicts`: share of the pairs of groups in the optimizer step whose gradients have a negative inner
      product, [0, 1], each optimizer step with at least two groups.

    Args:
        groups: `relation`: facts of one relation; `conflict`: clusters of facts whose gradients agree, so that the
            conflicts are between them, see `agreement_clusters`, measured on their own prompts (facts outside of the
            sample are a group of their own); `fact`: every fact.
        project: Whether to project conflicts away (PCGrad).
        unit_norm: Whether every group pulls equally hard.
        num_facts: Size of the sample of kept facts for `groups: conflict`.
        every_n_epochs: Epochs between two measurements for `groups: conflict`; the first is before training.
        seed: Of the order in which the groups meet.

    Raises:
        InputError: If a setting is out of its range or does nothing.

    Example:
        >>> GradientSurgery(groups="relation", unit_norm=True).unit_norm
        True
    """

    replaces_gradient = True
    """Whether what the backward passes leave is lost: what is not of the facts must not be in it."""

    def __init__(
        self,
        groups: Groups = "relation",
        project: bool = True,
        unit_norm: bool = False,
        num_facts: int = 128,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        if groups not in get_args(Groups):
            raise InputError(f"`groups` must be one of {', '.join(get_args(Groups))}, got {groups!r}")
        if not (project or unit_norm):
            raise InputError("GradientSurgery does nothing with `project: false` and `unit_norm: false`; leave it out")
        for name, value, least in (("num_facts", num_facts, 2), ("every_n_epochs", every_n_epochs, 1)):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        require_seed(seed)
        self.groups: Groups = groups
        self.project = project
        self.unit_norm = unit_norm
        self.num_facts = num_facts
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self._forget()

    @override
    def _forget(self) -> None:
        self.group_of: list[int] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _module(pl_module)
        facts = module.data.prepared.facts
        if self.groups == "fact":
            self.group_of = list(range(len(facts)))
        elif self.groups == "relation":
            numbers = {relation: number for number, relation in enumerate(sorted({fact.relation for fact in facts}))}
            self.group_of = [numbers[fact.relation] for fact in facts]
            if len(set(np.array(self.group_of)[module.data.prepared.is_trained])) == 1:
                raise InputError(
                    "`groups: relation` of GradientSurgery finds one relation only, so there is nothing between "
                    "groups. Give the facts a `relation`, or use `groups: conflict`."
                )
        elif not self.group_of:  # else a checkpoint brought the groups
            self._measure(module, epoch=0)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.groups == "conflict" and epoch and epoch % self.every_n_epochs == 0:
            self._measure(_module(pl_module), epoch)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # This hook runs before the module's: the gradient is that of Σ w_i ℓ_i, which the module normalises afterwards.
        module = _module(pl_module)
        used = module.loss_weights.of_step()
        rows, texts, weight = used.fact_index.tolist(), used.text_index.tolist(), used.weight
        counted = [number for number in range(len(rows)) if weight[number] > 0]
        group = np.array([self.group_of[rows[number]] for number in counted], dtype=np.int64)
        groups = _on_any_rank(trainer, group, num_groups=max(self.group_of) + 1, device=weight.device)
        if len(groups) < 2:
            return
        parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
        mine = [[at for at, one in zip(counted, group, strict=True) if one == this] for this in groups]
        gradients = torch.stack(
            [_gradient(module, parameters, [texts[at] for at in members], weight[members]) for members in mine]
        )
        gradients = sum_over_ranks(trainer, gradients)
        dot = (gradients @ gradients.T).double().cpu().numpy()
        generator = np.random.default_rng((self.seed, trainer.global_step))
        coefficients = surgery_coefficients(dot, generator, project=self.project, unit_norm=self.unit_norm)
        combined = torch.as_tensor(coefficients, dtype=gradients.dtype, device=gradients.device) @ gradients
        # Scaled as Lightning scales: divided by the number of micro-batches, averaged over ranks. The module undoes it.
        combined /= trainer.accumulate_grad_batches * trainer.world_size
        for parameter, part in zip(parameters, unflattened(combined, parameters), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(part)
        pairs = dot[np.triu_indices(len(dot), k=1)]
        module.log("train/group_conflicts", float((pairs < 0).mean()), on_step=True, batch_size=1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"group_of": self.group_of}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.group_of = list(state_dict["group_of"])

    def _measure(self, module: SemanticPeftModule, epoch: int) -> None:
        sample = trained_sample(module, self.num_facts, epoch // self.every_n_epochs)
        cosine = gradient_cosine(agreed_gradient_matrix(module, sample)).numpy()
        group_of = np.zeros(len(module.data.prepared.facts), dtype=np.int64)  # 0: not in the sample
        group_of[sample] = 1 + agreement_clusters(cosine)
        self.group_of = group_of.tolist()


def _gradient(
    module: SemanticPeftModule, parameters: Sequence[nn.Parameter], texts: Sequence[int], weight: Tensor
) -> Tensor:
    """Gradient of Σ w_i ℓ_i over some texts of this rank, `(P,)`; in training mode, so that dropout is as it was."""
    gradient = flattened([None] * len(parameters), parameters)
    start = 0
    data = module.data
    for batch in text_batches(data.prepared, texts, data.batches.micro_batch_size, data.encoder.pad_id):
        batch = batch.to(module.device)
        with torch.enable_grad(), module.trainer.precision_plugin.train_step_context():
            loss = (weight[start : start + len(batch)] * fact_nll(module.model, batch)).sum()
        # autograd.grad, not backward: neither `.grad` nor DDP's reducer sees anything.
        gradient += flattened(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
        start += len(batch)
    return gradient


def _on_any_rank(trainer: Trainer, group: np.ndarray, num_groups: int, device: torch.device) -> list[int]:
    """The groups that any rank has in the step, ascending."""
    present = torch.zeros(num_groups, device=device)
    present[torch.as_tensor(group, device=device)] = 1.0
    return [int(number) for number in sum_over_ranks(trainer, present).nonzero()[:, 0]]


def _module(pl_module: LightningModule) -> SemanticPeftModule:
    assert isinstance(pl_module, SemanticPeftModule)
    return pl_module
