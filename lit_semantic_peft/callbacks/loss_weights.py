"""Shows which weights training used: their distribution, not a row per fact."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_semantic_peft.data import from_all_ranks
from lit_semantic_peft.metrics import PerFactMean
from lit_semantic_peft.training import SemanticPeftModule

_QUANTILES = {"min": 0.0, "q10": 0.1, "median": 0.5, "q90": 0.9, "max": 1.0}
_MAX_QUANTILE_INPUT = 1_000_000  # torch.quantile takes no more than 16 million


class LossWeightDistribution(Callback):
    """Logs, after each epoch, how the loss weights of the trained facts were distributed in it.

    The weights are those that the loss used, see `LossWeights`; facts of weight 0 are left out. Costs an addition per
    optimizer step.

    Logged metrics, each epoch:

    - `weights/min`, `weights/q10`, `weights/median`, `weights/q90`, `weights/max`: quantiles over facts; static weights
      have mean 1.
    - `weights/effective_share`: (Σ w)² / (n · Σ w²), (0, 1]: Kish's effective sample size as a share of the
      facts; 1 if all weights are equal.
    """

    def __init__(self) -> None:
        self._weights: PerFactMean | None = None
        self._resumed: dict[str, Tensor] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Continues an interrupted epoch.
        self._start_anew(pl_module)
        assert self._weights is not None
        if trainer.is_global_zero:  # the others' weights are in its sums
            for name, value in self._resumed.items():
                setattr(self._weights, name, value.to(pl_module.device))
        self._resumed = {}

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_anew(pl_module)

    def _start_anew(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        self._weights = PerFactMean(len(pl_module.data.prepared.facts)).to(pl_module.device)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        assert self._weights is not None
        used = pl_module.loss_weights.of_step()
        counted = used.weight > 0  # fillers have weight 0
        self._weights.update(used.weight[counted], used.fact_index[counted])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._weights is not None
        per_fact = self._weights.compute()
        weight = per_fact[~per_fact.isnan()]
        if not len(weight):
            return
        pl_module.log_dict(
            {f"weights/{name}": value for name, value in weight_distribution(weight).items()}, batch_size=1
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks in this epoch, for the checkpoint. A collective."""
        if self._weights is None:
            return {}
        ranks = from_all_ranks({name: getattr(self._weights, name).cpu() for name in self._weights.metric_state})
        return {name: torch.stack([rank[name] for rank in ranks]).sum(dim=0) for name in ranks[0]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict


def weight_distribution(weight: Tensor) -> dict[str, float]:
    """Quantiles and effective share of some weights.

    Args:
        weight: float `(n,)`, ≥ 0, n ≥ 1.

    Returns:
        `min`, `q10`, `median`, `q90`, `max`, and `effective_share` in (0, 1] (1 where all weights are zero).

    Example:
        >>> weight_distribution(torch.tensor([0.0, 0.0, 2.0, 2.0]))["effective_share"]
        0.5
    """
    weight = weight.double()
    # Of very many weights every k-th in order: the quantiles are the same to a millionth.
    ordered = weight.sort().values
    ordered = ordered[:: -(-len(ordered) // _MAX_QUANTILE_INPUT)]
    quantiles = ordered.quantile(torch.tensor(list(_QUANTILES.values()), dtype=torch.float64, device=weight.device))
    square = float((weight**2).sum())
    share = float(weight.sum()) ** 2 / (len(weight) * square) if square else 1.0
    return dict(zip(_QUANTILES, quantiles.tolist(), strict=True)) | {"effective_share": share}
