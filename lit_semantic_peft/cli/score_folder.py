"""What `score` measures and writes: scores, selection and, after a warm-up, conflicts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from lit_semantic_peft.cli.conflicts import Conflicts, find_conflicts
from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.data.doubtful import DoubtfulFact, doubtful_facts
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.prepare import base_model_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import (
    Contradiction,
    NearDuplicateGroup,
    find_contradictions,
    find_near_duplicates,
    group_near_duplicates,
)
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
from lit_semantic_peft.reports.provenance import about_process
from lit_semantic_peft.reports.run_folder import RunPaths
from lit_semantic_peft.reports.score_records import (
    ContradictionRecord,
    Doubtful,
    DoubtfulRecord,
    DuplicatesRecord,
    FilterRecord,
    Findings,
)
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


@dataclass(frozen=True)
class Scored:
    """What `score` found.

    Attributes:
        prepared: The facts.
        comparison: How the distances agree, and what predicts what a run learned.
        conflicts: Which facts conflict; None where that was not measured.
        doubtful: The facts that contradict what the base model knows with confidence, the surest first.
        contradictions: Facts with the same prompt and different targets.
        duplicates: Facts that nearly repeat each other, the largest group first.
    """

    prepared: PreparedFacts
    comparison: DistanceComparison
    conflicts: Conflicts | None
    doubtful: Sequence[DoubtfulFact]
    contradictions: Sequence[Contradiction]
    duplicates: Sequence[NearDuplicateGroup]


def score_into(
    folder: RunFolder,
    module: SemanticPeftModule,
    data: KnowledgeDataModule,
    device: torch.device,
    warm_up: WarmUp | None = None,
    run: str | None = None,
) -> Scored:
    """Scores and selects facts, compares the distances, measures conflicts, and writes tables and report.

    Args:
        folder: Where everything is written.
        module: Gives the base model and, for a warm-up, the adapter's configuration; not changed.
        data: Gives the facts, distances, filters and weighting; not changed.
        device: Where the model runs.
        warm_up: None measures no conflicts.
        run: Folder of a finished run on these facts and this base model; None compares the distances alone.

    Raises:
        InputError: If the facts or settings cannot be used, or the run had another base model.
    """
    base = base_model_of(data.base_model, module)
    learned = None if run is None else _learned(RunFolder(run), base)
    encoder = encoder_of(base, data.encoding, None if warm_up is None else module)
    if warm_up is not None:
        module.check_adapter()
    # A warm-up trains on what the filters leave.
    preparation = replace(data.preparation, contradictions="keep", may_keep_none=warm_up is None)
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
    groups = group_near_duplicates(find_near_duplicates(prepared.facts))
    found = Scored(prepared, comparison, conflicts, doubtful, find_contradictions(prepared.facts), groups)
    _write(folder, found, base, preparation.distances[0].name)
    return found


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


def _write(folder: RunFolder, found: Scored, base: BaseModel, distance_name: str) -> None:
    prepared, conflicts, paths = found.prepared, found.conflicts, folder.paths
    columns = prepared.columns() | {"answer_before": list(prepared.scored.base_answer)}
    if conflicts is not None:
        columns |= conflicts.metric.columns(columns["fact_id"])
        result = conflicts.metric.compute()
        write_interference(paths.interference, result["gradient_dot"].numpy(), result["fact_index"].numpy())
    else:
        paths.interference.unlink(missing_ok=True)  # of an earlier call with a warm-up
    facts = write_fact_table(paths.facts, columns)
    where = folder.path.absolute()
    is_in_run = where.name == RunPaths.score.name
    about = about_process() | {
        "name": f"{where.parent.name}/{where.name}" if is_in_run else where.name,
        "base_model": base.source.public_name,
        "base_model_note": base.source.note or None,
        "distance_name": distance_name,
    }
    folder.write_summary(summarize(facts, **about))
    write_json(paths.distances, found.comparison.to_json(), RunPaths.distances.kind)
    doubtful = Doubtful(tuple(DoubtfulRecord(**asdict(one)) for one in found.doubtful))
    write_json(paths.doubtful, doubtful.to_json(), RunPaths.doubtful.kind)
    write_json(paths.findings, _findings(found).to_json(), RunPaths.findings.kind)
    write_distance_plot(folder, found.comparison)
    build_report(folder)


def _findings(found: Scored) -> Findings:
    prepared = found.prepared

    def contradiction(one: Contradiction) -> ContradictionRecord:
        return ContradictionRecord(
            one.first_form.prompt,
            (one.first_form.target, one.second_form.target),
            (one.first.id, one.second.id),
            (one.first.location, one.second.location),
        )

    return Findings(
        num_known=sum(
            is_known
            for fact, is_known in zip(prepared.facts, prepared.scored.is_known.tolist(), strict=True)
            if fact.split == "inject"
        ),
        filters=tuple(FilterRecord(step.name, step.num_given, step.dropped) for step in prepared.steps),
        contradictions=tuple(map(contradiction, found.contradictions)),
        near_duplicates=tuple(
            DuplicatesRecord(one.template, tuple(fact.id for fact in one.facts)) for one in found.duplicates
        ),
        without_templates=dict(prepared.forms.without_templates),
        conflict_steps=None if found.conflicts is None else found.conflicts.steps,
    )
