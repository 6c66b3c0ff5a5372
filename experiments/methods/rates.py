"""Which learning rate a method learns at: few facts, few steps, nothing but their loss and their recall."""

from collections.abc import Mapping
from typing import Any

from experiments.benchmarks.measured import peak_memory_gb
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer, seed_everything
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.training import SemanticPeftModule


def learned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, and asks the facts before and after.

    Args:
        config: `seed_everything`, `model`, `data` and `trainer` of a run, as plain data.

    Returns:
        Teacher-forced recall and mean loss of the facts before and after, trained parameters, optimizer steps, and the
        process's peak memory in GB.
    """
    seed_everything(config["seed_everything"], verbose=False)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SemanticPeftModule, "model")
    parser.add_class_arguments(KnowledgeDataModule, "data")
    made = parser.instantiate_classes(parser.parse_object({name: config[name] for name in ("model", "data")}))
    trainer = Trainer(
        **{name: value for name, value in config["trainer"].items() if name != "callbacks"},
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    before = _asked(trainer, made)
    trainer.fit(made.model, datamodule=made.data)
    after = _asked(trainer, made)
    return {
        "recalled_before": before["val/efficacy_teacher_forced"],
        "recalled_after": after["val/efficacy_teacher_forced"],
        "nll_before": round(before["val/nll"], 4),
        "nll_after": round(after["val/nll"], 4),
        "num_parameters": sum(one.numel() for one in made.model.trained_parameters()),
        "num_steps": trainer.global_step,
        "peak_memory_gb": round(peak_memory_gb(), 2),
    }


def _asked(trainer: Trainer, made: Namespace) -> dict[str, float]:
    (found,) = trainer.validate(made.model, datamodule=made.data, verbose=False)
    return dict(found)
