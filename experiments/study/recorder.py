"""What the study needs of a run beyond what every run leaves behind: the history of each fact, and what was spent."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lit_semantic_peft.files import write_json
from lit_semantic_peft.interference import gradient_matrix, net_transfer
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training import SemanticPeftModule

FILE = "history.json"


class HistoryRecorder(Callback):
    """Writes `history.json` into the run folder: steps and tokens spent, and each fact's likelihood along the way.

    Args:
        with_start_transfer: Whether the net transfer to each kept fact is measured before the first step.
    """

    def __init__(self, with_start_transfer: bool = False) -> None:
        self.with_start_transfer = with_start_transfer
        self.history: dict[str, Any] = {"global_step": [], "nll": [], "recalled": []}
        self.num_steps = 0
        self.num_tokens = 0
        self.num_exposures = 0
        self.start_transfer: dict[int, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the gradient matrix before training, where asked to."""
        if not self.with_start_transfer:
            return
        assert isinstance(pl_module, SemanticPeftModule)
        data = pl_module.data
        kept = data.prepared.kept_index
        matrix = gradient_matrix(pl_module.model, data.training_batches(kept, data.batches.micro_batch_size)).cpu()
        weight = torch.as_tensor(data.prepared.weights.start[kept], dtype=matrix.dtype)
        transfer = net_transfer(matrix, weight, len(kept))
        self.start_transfer = dict(zip(kept, transfer.tolist(), strict=True))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Counts tokens and facts."""
        self.num_tokens += int(batch.attention_mask.sum())
        self.num_exposures += len(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps each fact's likelihood and recall, before the module resets them."""
        assert isinstance(pl_module, SemanticPeftModule)
        if trainer.state.fn == "fit":
            self.history["global_step"].append(trainer.global_step)
            # Of more than `max_val_facts` facts some are not measured.
            self.history["nll"].append([_finite(one) for one in pl_module.val_nll.compute().tolist()])
            self.history["recalled"].append([_finite(one) for one in pl_module.val_efficacy.compute().tolist()])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps how many optimizer steps there were."""
        self.num_steps = trainer.global_step

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        assert isinstance(pl_module, SemanticPeftModule)
        assert pl_module.evaluation is not None
        prepared = pl_module.data.prepared
        spent = [len(one) for one in prepared.encoded]
        write_json(
            RunFolder(trainer.default_root_dir).path / FILE,
            {
                "num_steps": self.num_steps,
                "num_tokens": self.num_tokens,
                "num_exposures": self.num_exposures,
                "tokens_of_fact": spent,
                **self.history,
                "text_nll_delta": pl_module.evaluation.retention["retention_nll_delta"],
                "start_transfer": [_finite(self.start_transfer.get(row)) for row in range(len(spent))],
            },
        )


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else value
