"""Shows which weights training used: their distribution, not a row per fact."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.training import SemanticPeftModule

_QUANTILES = {"min": 0.0, "q10": 0.1, "median": 0.5, "q90": 0.9, "max": 1.0}
_MAX_QUANTILE_INPUT = 1_000_000  # torch.quantile takes no more than 16 million


class LossWeightDistribution(Callback):
    """Logs, after each epoch, how the loss weights of the trained facts were distributed in it.

    The weights are those that the loss used, see `LossWeights`; facts of weight 0 are left out.

    Logged metrics, each epoch:

    - `weights/min`, `weights/q10`, `weights/median`, `weights/q90`, `weights/max`: quantiles over facts; static weights
      have mean 1.
    - `weights/effective_share`: (Σ w)² / (n · Σ w²), (0, 1]: Kish's effective sample size as a share of the
      facts; 1 if all weights are equal.
    """

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        weight = torch.tensor([one for one in pl_module.loss_weights.used_in_epoch() if one], dtype=torch.float64)
        if not len(weight):
            return
        pl_module.log_dict(
            {f"weights/{name}": value for name, value in weight_distribution(weight).items()}, batch_size=1
        )


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
