"""Writes down what a run has found: the fact table, the probe table, the summary."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer

from lit_semantic_peft.callbacks.interference_monitor import InterferenceMonitor
from lit_semantic_peft.callbacks.routing_results import measure_routing
from lit_semantic_peft.callbacks.scaling import ScalesAdapter
from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Evaluation
from lit_semantic_peft.files import WRITTEN_BY, mark, write_text
from lit_semantic_peft.models import peft_type_name
from lit_semantic_peft.reports import (
    EpochRecord,
    Estimate,
    FormsRecord,
    GateRecord,
    Manifest,
    RetentionRecord,
    RunContents,
    RunFolder,
    Seconds,
    Summary,
    merge_previous,
    score_records,
    summarize,
    write_fact_table,
    write_probe_table,
)
from lit_semantic_peft.reports.provenance import about_process, keep_earlier
from lit_semantic_peft.reports.run_folder import RunPaths
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)


def write_selection(folder: RunFolder, module: SemanticPeftModule) -> tuple[int, int]:
    """Writes which facts were dropped and why, and which facts and base model the folder's results are of.

    Args:
        folder: The run folder.
        module: The module.

    Returns:
        Number of kept and of dropped facts.
    """
    prepared, source = module.data.prepared, module.base_model.source
    dropped = [
        json.dumps(
            {**fact.to_json(), "drop_reason": reason, WRITTEN_BY: mark(RunPaths.dropped.kind)}, ensure_ascii=False
        )
        for fact, reason, is_dropped in zip(prepared.facts, prepared.reason, prepared.is_dropped, strict=True)
        if is_dropped
    ]
    num_kept = len(prepared.kept_index)
    write_text(folder.paths.dropped, "".join(f"{line}\n" for line in dropped), RunPaths.dropped.kind)
    folder.write_manifest(Manifest(prepared.key, source.public_name, source.fingerprint, len(prepared.facts), num_kept))
    return num_kept, len(dropped)


def write_results(
    trainer: Trainer, module: SemanticPeftModule, epochs: Sequence[EpochRecord], stopwatch: Stopwatch
) -> RunContents | None:
    """Writes tables and summary. What was not measured now is kept from an earlier evaluation of the same facts.

    Args:
        trainer: The trainer.
        module: The module.
        epochs: The numbers of the epochs.
        stopwatch: Seconds of each part of the run.

    Returns:
        What the run folder now holds; None on other ranks than the first. All ranks take part.
    """
    columns = fact_columns(trainer, module)
    if not trainer.is_global_zero:
        return None
    folder = RunFolder(trainer.default_root_dir)
    paths = folder.paths
    previous = folder.facts if paths.facts.is_file() else None
    is_same = previous is not None and previous.column("fact_id").to_pylist() == columns["fact_id"]
    facts = write_fact_table(paths.facts, merge_previous(columns, previous) if is_same else columns)
    probes = None
    if module.evaluation is not None:
        probes = write_probe_table(paths.probes, module.evaluation.probe_columns(columns["fact_id"]))
    elif paths.probes.is_file():
        probes = folder.probes
    earlier = _earlier_summary(folder) if is_same else None
    config = folder.config if paths.config.is_file() else ""
    summary = summarize(
        facts, probes, **keep_earlier(_about_run(trainer, module, folder, epochs, stopwatch, config), earlier)
    )
    folder.write_summary(summary)
    matrix = folder.matrix if paths.interference.is_file() else None
    return RunContents(facts, summary, probes, matrix, config, folder.name)


def _about_run(
    trainer: Trainer,
    module: SemanticPeftModule,
    folder: RunFolder,
    epochs: Sequence[EpochRecord],
    stopwatch: Stopwatch,
    config: str,
) -> dict[str, Any]:
    monitor = _monitor(trainer)
    return about_process() | {
        "name": folder.name,
        "base_model": module.base_model.source.public_name,
        "base_model_note": module.base_model.source.note or None,
        "peft_type": peft_type_name(module.model),
        "trainable_parameters": sum(p.numel() for p in module.model.parameters() if p.requires_grad),
        "scale": _scale(trainer),
        "distance_name": module.data.distances[0].name,
        "epochs": tuple(epochs),
        "interference": tuple(monitor.records) if monitor else (),
        "retention": _retention(module.evaluation) if module.evaluation else None,
        "gate": _gate(module),
        "routing": measure_routing(module, folder.matrix if folder.paths.interference.is_file() else None),
        "forms": _forms(module.data),
        "seconds": Seconds(**stopwatch.seconds),
        "config": yaml.safe_load(config) or {},
    }


def _scale(trainer: Trainer) -> float | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.scale for callback in callbacks if isinstance(callback, ScalesAdapter)), None)


def _monitor(trainer: Trainer) -> InterferenceMonitor | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = [callback for callback in callbacks if isinstance(callback, InterferenceMonitor)]
    return monitors[0] if monitors else None


def fact_columns(trainer: Trainer, module: SemanticPeftModule) -> dict[str, list[Any]]:
    """The columns of the fact table that are known so far. All ranks take part.

    Args:
        trainer: The trainer.
        module: The module.
    """
    prepared, monitor = module.data.prepared, _monitor(trainer)
    columns = prepared.columns()
    columns["num_subject_tokens"] = [
        len(module.data.encoder.encode_name(fact.subject)) if fact.subject else None for fact in prepared.facts
    ]
    if hasattr(module, "dynamics"):
        columns |= _dynamics_columns(module) | {"loss_weight_used": module.loss_weights.used()}
    if monitor is not None and monitor.latest is not None:
        columns |= monitor.latest.columns(columns["fact_id"])
    if module.evaluation is not None:
        columns |= module.evaluation.fact_columns()
    return columns


def _dynamics_columns(module: SemanticPeftModule) -> dict[str, list[Any]]:
    history = {name: values.tolist() for name, values in module.dynamics.compute().items()}
    measured = [count > 0 for count in history["num_measured"]]

    def where_measured(values: list[Any]) -> list[Any]:
        return [value if known else None for value, known in zip(values, measured, strict=True)]

    return {
        "first_learned_epoch": [epoch if epoch >= 0 else None for epoch in history["first_learned"]],
        "forgetting_events": where_measured(history["forgetting_events"]),
        "learned_at_end": where_measured(history["is_recalled"]),
    }


def _forms(data: KnowledgeDataModule) -> FormsRecord | None:
    if not data.forms.sources:
        return None
    kept, forms = data.prepared.is_kept, data.prepared.forms
    with_stopping = int(forms.has_stopping[kept].sum())
    return FormsRecord(
        forms.num_facts_by_source(data.prepared.kept_index), with_stopping, int(kept.sum()) - with_stopping
    )


def _gate(module: SemanticPeftModule) -> GateRecord | None:
    gated, table = module.gated, module.subject_table
    if gated is None or table is None:
        return None
    columns, prepared = gated.evaluation.fact_columns(), module.data.prepared
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    kept, dropped = (
        [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen]
        for chosen in (prepared.is_kept, prepared.is_dropped)
    )
    return GateRecord(
        match=table.match,
        num_names=len(table.names),
        num_opened=dict(gated.num_opened),
        num_asked=dict(gated.num_asked),
        scores=score_records(kept, dropped),
        retention=_retention(gated.evaluation),
    )


def _retention(evaluation: Evaluation) -> RetentionRecord | None:
    delta, known = (Estimate.of(evaluation.retention[name]) for name in ("retention_nll_delta", "retention_known"))
    if delta is None and known is None:
        return None
    before, after = evaluation.text_nll or (None, None)
    return RetentionRecord(nll_before=before, nll_after=after, nll_delta=delta, known=known)


def refuse_other_results(folder: RunFolder, prepared: PreparedFacts) -> None:
    """Refuses to overwrite results of other facts; warns that a summary that cannot be read is replaced.

    Args:
        folder: The run folder.
        prepared: The facts that are to be tested.

    Raises:
        InputError: If the folder holds the results of other facts.
    """
    found = folder.fact_ids()
    if found is None:
        return
    if found != [fact.id for fact in prepared.facts]:
        raise InputError(
            f"The run folder {folder.path} holds the results of other facts than those to be tested; they would be "
            "overwritten. Choose another folder by `--trainer.default_root_dir runs/NAME`, and name the checkpoint by "
            f"its file, `--ckpt_path {folder.paths.last_checkpoint}`."
        )
    _earlier_summary(folder, warns=True)  # now, not when all questions have been asked


def _earlier_summary(folder: RunFolder, *, warns: bool = False) -> Summary | None:
    """The summary that is in the folder; None where there is none, or none that this version can read."""
    if not folder.paths.summary.is_file():
        return None
    try:
        return folder.summary
    except InputError as error:
        if warns:
            logger.warning("The earlier summary cannot be read and will be replaced: %s", error)
        return None
