"""Lightning's Trainer with one more verb: `score` looks at facts without training on them."""

from dataclasses import replace

from lightning.pytorch import Trainer
from rich.console import Console

from lit_semantic_peft.cli.conflicts import Conflicts, find_conflicts
from lit_semantic_peft.cli.score_tables import print_scores
from lit_semantic_peft.compatibility import refuse_incompatible
from lit_semantic_peft.data import KnowledgeDataModule, PreparedFacts
from lit_semantic_peft.data.prepare import base_model_of
from lit_semantic_peft.data.scoring import encoder_of
from lit_semantic_peft.data.situation import situation_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_json
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.reports import (
    RunFolder,
    build_report,
    compare_distances,
    read_learned,
    summarize,
    write_distance_plot,
    write_fact_table,
    write_interference,
)
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.training import SemanticPeftModule


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
    ) -> PreparedFacts:
        """Measures how far each fact is from the model, what the filter would keep and why, and what is suspicious.

        Runs in one process, on the trainer's device. Facts with the same prompt and different targets are listed here
        instead of refused. Module and data module are not changed.

        Args:
            model: Gives the base model and, for a warm-up, the adapter's configuration.
            datamodule: Gives the facts, distances, filters and weighting.
            output: Folder for `facts.parquet`, `report.html`, `distances.json`, `plots/distances.png` and, after a
                warm-up, `interference.safetensors`; overwritten, unless it is the folder of a run.
            warmup_steps: Train a throw-away adapter for so many steps and measure which facts conflict. 0 measures no
                conflicts: before training there are hardly any.
            warmup_learning_rate: Constant learning rate of the warm-up.
            num_conflict_facts: How many of the kept facts are measured then, chosen by the data's seed.
            run: Folder of a finished run on these facts and this base model: which distance predicts, from the base
                model alone, what the run learned.

        Returns:
            What the filters would keep, and what each fact would weigh.

        Raises:
            InputError: If the facts or settings cannot be used.
        """
        situation = situation_of(self, "score", datamodule.preparation)
        # Without a warm-up the module gives the base model alone.
        refuse_incompatible(model.complete_situation(situation) if warmup_steps else situation)
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
        base = base_model_of(datamodule.base_model, model)
        learned = None if run is None else _learned(RunFolder(run), base)
        device = self.strategy.root_device
        encoder = encoder_of(base, datamodule.encoding)
        preparation = replace(datamodule.preparation, contradictions="keep")
        prepared = preparation.prepare(preparation.read(encoder), base, encoder, device, Stopwatch())
        comparison = compare_distances(prepared.scored.distances, prepared.scored.fact_id, learned)
        conflicts = None
        if warmup_steps:
            conflicts = find_conflicts(
                model,
                datamodule,
                prepared,
                encoder.pad_id,
                device,
                folder.path,
                steps=warmup_steps,
                learning_rate=warmup_learning_rate,
                num_facts=num_conflict_facts,
            )
        _write(folder, prepared, base, preparation.distances[0].name, conflicts)
        write_json(folder.paths.distances, comparison.to_json())
        write_distance_plot(folder, comparison)
        print_scores(prepared, comparison, conflicts)
        Console(markup=False, emoji=False).print(
            f"Written: {folder.paths.facts} and {folder.paths.report}", soft_wrap=True
        )
        return prepared


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
