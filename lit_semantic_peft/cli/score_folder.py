"""What `score` measures and writes: scores, selection and, after a warm-up, conflicts."""

from dataclasses import asdict, dataclass, replace

import torch

from lit_semantic_peft.cli.conflicts import Conflicts, find_conflicts
from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.data.doubtful import DoubtfulFact, doubtful_facts
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.prepare import base_model_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_json
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.reports import (
    DistanceComparison,
    RunFolder,
    build_report,
    compare_distances,
    read_learned,
    summarize,
    write_distance_plot,
    write_fact_table,
    write_interference,
)
from lit_semantic_peft.reports.run_folder import RunPaths
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.training import SemanticPeftModule


@dataclass(frozen=True)
class WarmUp:
    """The training of a throw-away adapter before conflicts are measured.

    Attributes:
        steps: Optimizer steps, at least 1.
        learning_rate: Of the steps, constant.
        num_facts: How many of the kept facts are compared afterwards, chosen by the data's seed.
    """

    steps: int
    learning_rate: float
    num_facts: int


def score_into(
    folder: RunFolder,
    module: SemanticPeftModule,
    data: KnowledgeDataModule,
    device: torch.device,
    warm_up: WarmUp | None = None,
    run: str | None = None,
) -> tuple[PreparedFacts, DistanceComparison, Conflicts | None, list[DoubtfulFact]]:
    """Scores and selects facts, compares the distances, measures conflicts, and writes tables and report.

    Args:
        folder: Where everything is written.
        module: Gives the base model and, for a warm-up, the adapter's configuration; not changed.
        data: Gives the facts, distances, filters and weighting; not changed.
        device: Where the model runs.
        warm_up: None measures no conflicts.
        run: Folder of a finished run on these facts and this base model; None compares the distances alone.

    Returns:
        The facts; how the distances agree, and what predicts what the run learned; the conflicts; the facts that
        contradict what the base model knows with confidence.

    Raises:
        InputError: If the facts or settings cannot be used, or the run had another base model.
    """
    base = base_model_of(data.base_model, module)
    learned = None if run is None else _learned(RunFolder(run), base)
    encoder = encoder_of(base, data.encoding)
    if warm_up is not None:
        module.check_adapter()
    preparation = replace(data.preparation, contradictions="keep")
    prepared = preparation.prepare(preparation.read(encoder), base, encoder, device, Stopwatch())
    doubtful = doubtful_facts(
        prepared.facts, prepared.scored, prepared.encoded, base, encoder, device, preparation.cache
    )
    comparison = compare_distances(prepared.scored.distances, prepared.scored.fact_id, learned)
    conflicts = None
    if warm_up is not None:
        conflicts = find_conflicts(
            module,
            data,
            prepared,
            encoder.pad_id,
            device,
            folder.path,
            steps=warm_up.steps,
            learning_rate=warm_up.learning_rate,
            num_facts=warm_up.num_facts,
        )
    _write(folder, prepared, base, preparation.distances[0].name, conflicts)
    write_json(folder.paths.distances, comparison.to_json(), RunPaths.distances.kind)
    write_json(folder.paths.doubtful, {"facts": [asdict(fact) for fact in doubtful]}, RunPaths.doubtful.kind)
    write_distance_plot(folder, comparison)
    return prepared, comparison, conflicts, doubtful


def _learned(run: RunFolder, base: BaseModel) -> dict[str, dict[str, bool]]:
    """What a run learned, once it is known to have had the same base model, by whatever name."""
    learned = read_learned(run)
    manifest = run.manifest
    if manifest.base_fingerprint != base.source.fingerprint:
        raise InputError(
            f"`run` {run.path} was trained on the base model {manifest.base_model}, but `base_model` is "
            f"{base.name}, or the same model with other weights. Take the run's own configuration: "
            f"`--config {run.paths.config}`."
        )
    return learned


def _write(
    folder: RunFolder, prepared: PreparedFacts, base: BaseModel, distance_name: str, conflicts: Conflicts | None
) -> None:
    columns = prepared.columns()
    if conflicts is not None:
        columns |= conflicts.metric.columns(columns["fact_id"])
        result = conflicts.metric.compute()
        write_interference(folder.paths.interference, result["gradient_dot"].numpy(), result["fact_index"].numpy())
    else:
        folder.paths.interference.unlink(missing_ok=True)  # of an earlier call with a warm-up
    facts = write_fact_table(folder.paths.facts, columns)
    about = {"name": folder.path.name, "base_model": base.name, "distance_name": distance_name}
    folder.write_summary(summarize(facts, **about))
    build_report(folder)
