"""What the study needs of a run beyond what every run leaves: what it spent, lost passages, scores through a gate."""

import time
from typing import Any

from experiments.benchmarks.measured import peak_memory_gb
from lightning.pytorch import Callback, LightningModule, Trainer
from lit_semantic_peft.files import write_json
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.tokens import Batch
from lit_semantic_peft.training import SemanticPeftModule

FILE = "spent.json"


class Recorder(Callback):
    """Writes `spent.json` into the run folder."""

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.num_tokens = 0
        self.spent: dict[str, Any] = {}
        self._begin = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Counts tokens of the facts, and begins to time the step."""
        self.num_tokens += int(batch.attention_mask.sum())
        self._begin = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Ends to time the step."""
        self.step_seconds.append(time.process_time() - self._begin)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what training took, before the evaluation adds to it."""
        self.spent = {
            "num_steps": trainer.global_step,
            "num_tokens": self.num_tokens,
            "num_parameters": sum(one.numel() for one in pl_module.parameters() if one.requires_grad),
            "step_cpu_seconds": self.step_seconds,
            "peak_memory_gb": peak_memory_gb(),
        }

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        assert isinstance(pl_module, SemanticPeftModule)
        assert pl_module.evaluation is not None
        gated = pl_module.gated
        evaluation = pl_module.evaluation if gated is None else gated.evaluation
        found = {
            "text_nll_delta": evaluation.retention["retention_nll_delta"],
            "through_gate": None if gated is None else evaluation.fact_columns(),
        }
        write_json(RunFolder(trainer.default_root_dir).path / FILE, self.spent | found)
