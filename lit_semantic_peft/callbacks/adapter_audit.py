"""A guard at the end of a training: audits the adapter, and stops what comes after it where the audit warns."""

import logging
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.audit.inspection import NUM_BUILTIN_FACTS, Inspection, as_watch_list, inspect_loaded
from lit_semantic_peft.audit.page import with_audit, write_inspection
from lit_semantic_peft.audit.wording import verdict_text
from lit_semantic_peft.callbacks.adapter_export import AdapterExport
from lit_semantic_peft.callbacks.fact_report import FactReport
from lit_semantic_peft.data.situation import is_sharded
from lit_semantic_peft.errors import AuditWarning, InputError
from lit_semantic_peft.files import write_text
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import FreshCallback

logger = logging.getLogger(__name__)


class AdapterAudit(FreshCallback):
    """Audits the exported adapter when training has ended, as `lit-semantic-peft inspect` does.

    Writes `inspection/` into the run folder and the audit's summary into the adapter's model card. Where a rule warns
    it raises `AuditWarning`, by which the command ends with status 3: at once, or after the evaluation where `fit` goes
    on with one. Cost: that of an audit, about two minutes for a small model on two CPU cores.

    Args:
        facts: Whether the facts that were trained are asked as well; they are many in a large training.
        watch: YAML file of what must hold, beside the package's own list.
        bank: Folder with adapters of one's own.
        num_builtin: How many built-in facts are asked, ≥ 1.
        stop: Whether a warning raises; else it is only logged.

    Raises:
        InputError: If a setting cannot be used, or no `AdapterExport` is among the callbacks.
    """

    def __init__(
        self,
        facts: bool = True,
        watch: str | None = None,
        bank: str | None = None,
        num_builtin: int = NUM_BUILTIN_FACTS,
        stop: bool = True,
    ) -> None:
        if num_builtin < 1:
            raise InputError(f"`num_builtin` must be at least 1, got {num_builtin}")
        if bank is not None and not Path(bank).is_dir():
            raise InputError(f"`bank` {bank!r} is no folder. Expected a folder with adapters in it.")
        self.facts = facts
        self.watch = as_watch_list(watch)
        self.bank = bank
        self.num_builtin = num_builtin
        self.stop = stop
        self._forget()

    @override
    def _forget(self) -> None:
        self.inspection: Inspection | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there will be an adapter to audit.

        Raises:
            InputError: If there will not.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not any(isinstance(one, AdapterExport) for one in trainer.callbacks):  # type: ignore[attr-defined]
            raise InputError("`AdapterAudit` audits what `AdapterExport` writes; add that callback.")
        if stage == "fit" and is_sharded(trainer):
            raise InputError("`AdapterAudit` needs the whole model in one process. Use `lit-semantic-peft inspect`.")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Audits behind the export, whatever the order of the callbacks.

        Raises:
            AuditWarning: If the audit warns and nothing comes after it.
        """
        assert isinstance(pl_module, SemanticPeftModule)
        if stage == "fit" and trainer.is_global_zero:
            self._audit(RunFolder(trainer.default_root_dir), pl_module)
        goes_on = any(isinstance(one, FactReport) and one.is_test_next for one in trainer.callbacks)  # type: ignore[attr-defined]
        is_end = stage == "test" or (stage == "fit" and not goes_on)
        if is_end and self.stop and self.inspection is not None and self.inspection.warns:
            raise AuditWarning(verdict_text(self.inspection))

    def _audit(self, folder: RunFolder, module: SemanticPeftModule) -> None:
        prepared = module.data.prepared
        taught = [fact for fact, is_trained in zip(prepared.facts, prepared.is_trained, strict=True) if is_trained]
        with torch.no_grad(), undisturbed(module.model):
            self.inspection = inspect_loaded(
                module.model,
                folder.paths.adapter,
                module.data.encoder,
                module.base_model,
                facts=taught if self.facts else (),
                watch=self.watch,
                bank=self.bank,
                num_builtin=self.num_builtin,
            )
        page = write_inspection(self.inspection, folder.paths.inspection)
        card = folder.paths.adapter / "README.md"
        write_text(card, with_audit(card.read_text(encoding="utf-8"), self.inspection))
        said = f"{verdict_text(self.inspection)} {page}"
        logger.warning(said) if self.inspection.warns else logger.info(said)
