"""Lightning's Trainer with one more verb: `score` looks at facts without training on them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Column, Table
from tqdm.auto import tqdm

from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import find_contradictions, find_near_duplicates
from lit_semantic_peft.files import write_json
from lit_semantic_peft.interference import folder_if_large, gradient_matrix, warm_up
from lit_semantic_peft.metrics import GradientInterference
from lit_semantic_peft.models import resolve_base_model
from lit_semantic_peft.reports import (
    Discrimination,
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
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)

_SHOWN = 5
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Conflicts:
    """Gradient conflicts after a warm-up.

    Attributes:
        metric: The gradient matrix and what follows from it.
        pairs: Fact indices and cosine of the worst pairs, worst first.
        steps: Optimizer steps of the warm-up.
    """

    metric: GradientInterference
    pairs: list[tuple[int, int, float]]
    steps: int


class KnowledgeTrainer(Trainer):
    """`lightning.pytorch.Trainer` plus `score`."""

    def score(
        self,
        model: SemanticPeftModule,
        datamodule: KnowledgeDataModule,
        output: str = "scores",
        warmup_steps: int = 0,
        warmup_learning_rate: float = 2e-3,
        num_conflict_facts: int = 64,
        run: str | None = None,
    ) -> None:
        """Says how far each fact is from the model, what the filter would keep and why, and what is suspicious.

        Runs in one process, on the trainer's device. Facts with the same prompt and different targets are listed here
        instead of refused.

        Args:
            model: Names the base model and, for a warm-up, the adapter.
            datamodule: Names the facts, distances, filters and weighting.
            output: Folder for `facts.parquet`, `report.html`, `distances.json`, `plots/distances.png` and, after a
                warm-up, `interference.safetensors`; overwritten, unless it is the folder of a run.
            warmup_steps: Train a throw-away adapter for so many steps and measure which facts conflict. 0 for not at
                all: before training there are hardly any conflicts to see.
            warmup_learning_rate: Constant learning rate of the warm-up.
            num_conflict_facts: How many of the kept facts are measured then, chosen by the data's seed.
            run: Folder of a finished run on these facts and this base model: which distance predicts, from the base
                model alone, what the run learned.

        Raises:
            InputError: If the facts or settings cannot be used.
        """
        if self.world_size > 1:
            raise InputError(f"`score` runs in one process, but the trainer has {self.world_size}: set `devices` to 1.")
        if warmup_steps < 0:
            raise InputError(f"`warmup_steps` must be at least 0, got {warmup_steps}")
        if num_conflict_facts < 2:
            raise InputError(f"`num_conflict_facts` must be at least 2, got {num_conflict_facts}")
        folder = RunFolder(output)
        if folder.paths.manifest.is_file() or folder.paths.checkpoints.is_dir():
            raise InputError(
                f"`output` {output} is the folder of a run, whose table, summary and report would be overwritten. "
                "Choose another."
            )
        learned = None if run is None else _learned(RunFolder(run), datamodule)
        datamodule.trainer = self
        datamodule.contradictions = "keep"
        datamodule.setup("score")
        prepared = datamodule.prepared
        scored = prepared.scored
        comparison = compare_distances(scored.distances, scored.fact_id, learned)
        conflicts = None
        if warmup_steps:
            conflicts = _conflicts(model, datamodule, folder, warmup_steps, warmup_learning_rate, num_conflict_facts)
        _write(folder, datamodule, conflicts)
        write_json(folder.paths.distances, comparison.to_json())
        write_distance_plot(folder, comparison)
        console = Console(markup=False, emoji=False)
        for table in (
            _distance_table(prepared),
            _agreement_table(comparison),
            _status_table(prepared),
            _extremes_table(prepared),
        ):
            console.print(table)
        if comparison.predicts is not None:
            console.print(_prediction_table(comparison.predicts))
        _print_suspicious(console, prepared)
        if conflicts is None:
            console.print("Conflicts between facts: not measured; `--warmup_steps 20` does.")
        else:
            console.print(_conflict_table(prepared, conflicts))
        console.print(f"Written: {folder.paths.facts} and {folder.paths.report}", soft_wrap=True)


def _learned(run: RunFolder, data: KnowledgeDataModule) -> dict[str, dict[str, bool]]:
    """What a run learned, once it is known to have had the same base model, by whatever name."""
    learned = read_learned(run)
    manifest = run.manifest
    if manifest.base_fingerprint != resolve_base_model(data.base_model, data.revision).fingerprint:
        raise InputError(
            f"`run` {run.path} was trained on the base model {manifest.base_model}, but `base_model` is "
            f"{data.base_model}, or the same model with other weights. Take the run's own configuration: "
            f"`--config {run.paths.config}`."
        )
    return learned


def _conflicts(
    module: SemanticPeftModule,
    data: KnowledgeDataModule,
    folder: RunFolder,
    steps: int,
    learning_rate: float,
    num_facts: int,
) -> Conflicts:
    module.configure_model()
    device = data.device
    model = module.model.to(device)
    prepared = data.prepared
    kept = prepared.kept_index
    generator = np.random.default_rng(data.seed)
    order = generator.permutation(kept).tolist()
    with tqdm(total=steps, desc="Warming up a throw-away adapter", unit="step") as bar:
        batches = data.training_batches(order, data.micro_batch_size)
        warm_up(model, batches, steps, learning_rate, on_step=lambda step, loss: bar.update())
    sample = sorted(order[:num_facts])
    metric = GradientInterference(sample, prepared.weights.start[sample].tolist(), num_trained_facts=len(kept))
    features = folder_if_large(model, len(sample), folder.path)
    metric.update(gradient_matrix(model, data.training_batches(sample, data.micro_batch_size), features))
    cosine = metric.compute()["gradient_cosine"].numpy()
    rows, columns = np.triu_indices(len(sample), k=1)
    worst = np.argsort(cosine[rows, columns], kind="stable")[:_SHOWN]
    pairs = [(sample[rows[at]], sample[columns[at]], float(cosine[rows[at], columns[at]])) for at in worst]
    return Conflicts(metric, pairs, steps)


def _write(folder: RunFolder, data: KnowledgeDataModule, conflicts: Conflicts | None) -> None:
    columns = data.prepared.columns()
    if conflicts is not None:
        columns |= conflicts.metric.columns(columns["fact_id"])
        result = conflicts.metric.compute()
        write_interference(folder.paths.interference, result["gradient_dot"].numpy(), result["fact_index"].numpy())
    else:
        folder.paths.interference.unlink(missing_ok=True)  # of an earlier call with a warm-up
    facts = write_fact_table(folder.paths.facts, columns)
    about = {"name": folder.path.name, "base_model": data.base_model, "distance_name": data.distances[0].name}
    folder.write_summary(summarize(facts, **about))
    build_report(folder)


def _distance_table(prepared: PreparedFacts) -> Table:
    table = Table(
        Column("distance", overflow="fold"),
        *[f"{quantile:.0%}" for quantile in _QUANTILES],
        title="How far the facts are (quantiles)",
        title_justify="left",
    )
    for name, values in prepared.scored.distances.items():
        table.add_row(name, *[f"{value:.3f}" for value in np.quantile(values, _QUANTILES)])
    return table


def _agreement_table(comparison: DistanceComparison) -> Table:
    table = Table(
        Column("distance", overflow="fold"),
        *[Column(name, overflow="fold") for name in comparison.names],
        title="How the distances agree (Spearman's rank correlation)",
    )
    table.title_justify = "left"
    for name, row in zip(comparison.names, comparison.rank_correlation, strict=True):
        table.add_row(name, *["–" if np.isnan(value) else f"{value:.2f}" for value in row])
    return table


def _prediction_table(predicts: Mapping[str, Mapping[str, Discrimination]]) -> Table:
    table = Table(
        Column("distance", overflow="fold"),
        *predicts,
        title="What predicts that a fact is learned (AUROC)",
        title_justify="left",
    )
    for name in next(iter(predicts.values())):
        found = [of_distance[name] for of_distance in predicts.values()]
        table.add_row(name, *[f"{one.auroc:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in found])
    counts = [
        f"{outcome}: {one.num_learned} of {one.num_learned + one.num_not_learned} facts"
        for outcome, of_distance in predicts.items()
        for one in list(of_distance.values())[:1]
    ]
    table.caption = f"1: the near facts were learned; 0.5: says nothing. Learned by {'; '.join(counts)}"
    return table


def _status_table(prepared: PreparedFacts) -> Table:
    table = Table("status", "facts", "mean distance", title="What the filter would do", title_justify="left")
    statuses = [reason or "kept" for reason in prepared.reason]
    for status in sorted(set(statuses), key=lambda one: (one != "kept", one)):
        rows = [row for row, other in enumerate(statuses) if other == status]
        table.add_row(status, str(len(rows)), f"{prepared.scored.distance[rows].mean():.3f}")
    known = int(prepared.scored.is_known.sum())
    table.caption = f"{known} of {len(prepared.facts)} facts are known to the base model already"
    return table


def _extremes_table(prepared: PreparedFacts) -> Table:
    table = Table(
        "distance",
        "prompt",
        "target",
        "base model answers",
        "status",
        title="Nearest and farthest",
        title_justify="left",
    )
    order = np.argsort(prepared.scored.distance, kind="stable")
    nearest, farthest = order[:_SHOWN], order[_SHOWN:][-_SHOWN:]
    for rows in (nearest, farthest):
        for row in rows:
            fact = prepared.facts[row]
            table.add_row(
                f"{prepared.scored.distance[row]:.3f}",
                fact.prompt,
                fact.target,
                prepared.scored.base_answer[row],
                prepared.reason[row] or "kept",
            )
        table.add_section()
    return table


def _print_suspicious(console: Console, prepared: PreparedFacts) -> None:
    contradictions = find_contradictions(prepared.facts)
    duplicates = find_near_duplicates(prepared.facts)
    console.print(f"Contradictions (same prompt, different targets): {len(contradictions)}")
    for contradiction in contradictions[:_SHOWN]:
        console.print(f"  {contradiction}")
    console.print(f"Near-duplicates in the text: {len(duplicates)}")
    for duplicate in duplicates[:_SHOWN]:
        console.print(f"  {duplicate}")


def _conflict_table(prepared: PreparedFacts, conflicts: Conflicts) -> Table:
    scalars = conflicts.metric.summary()
    table = Table("cosine", "fact", "against", title="Worst conflicts", title_justify="left")
    for left, right, cosine in conflicts.pairs:
        first, second = prepared.facts[left], prepared.facts[right]
        table.add_row(f"{cosine:.3f}", f"{first.prompt} {first.target}", f"{second.prompt} {second.target}")
    table.caption = (
        f"after {conflicts.steps} steps: {scalars['conflict_rate']:.1%} of the pairs in conflict, "
        f"median net transfer {scalars['net_transfer_median']:.2f}"
    )
    return table
