"""What a step of the recipe costs beside one of plain LoRA: processor seconds, and peak memory of the training.

    python -m experiments.benchmarks.recipe_cost [--base_model smollm2-135m] [--num_steps 24] [--repetitions 5]

Each repetition trains every arm once, in processes of their own and in turn, on the same facts of `world`; nothing is
evaluated. Seconds are the mean over the steps of a run, since the recipe holds text in every second step.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import lit_semantic_peft as lsp
import torch
from experiments.benchmarks.measured import ROOT, keep, peak_memory_gb
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lit_semantic_peft.training.retain import HeldStill
from peft import LoraConfig

ARMS = {"plain_padded": False, "plain": None, "recipe_padded": False, "recipe": None}
"""`prefix_tree` of each arm; those that are not padded run as `fit` does by default."""

WARM_UP = 4
"""First steps of a run, which are not counted."""


class _Spent(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before_gb = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before_gb = peak_memory_gb()

    def on_train_batch_start(self, *_: Any) -> None:
        self._begin = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self._begin)


def measured(arm: str, base_model: str, num_steps: int) -> dict[str, float]:
    """Trains one arm in this process.

    Args:
        arm: One of `ARMS`.
        base_model: As in a user's YAML.
        num_steps: Optimizer steps of 16 facts.

    Returns:
        Mean processor seconds of a step, and the process's peak memory, GB, before the first step and in all.
    """
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    settings: dict[str, Any] = {"num_facts": 96, "batches": lsp.BatchPlan(micro_batch_size=16)}
    retain: list[HeldStill] = []
    if arm.startswith("recipe"):
        facts = lsp.read_facts("world").facts[:96]
        recipe = lsp.choose_recipe(facts, lsp.BaseModel(base_model).count_parameters(), adapter)
        settings["forms"], retain = recipe.forms, list(recipe.retain)
    data = lsp.KnowledgeDataModule("world", **settings)
    module = lsp.SemanticPeftModule(base_model, peft_config=adapter, retain=retain, prefix_tree=ARMS[arm])
    spent = _Spent()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=num_steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[spent],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return {
        "step_cpu_seconds": fmean(spent.seconds[WARM_UP:]),
        "peak_gb_before": spent.before_gb,
        "peak_gb": max(spent.before_gb, peak_memory_gb()),  # the kernel's own count is late by some pages
    }


def _in_process(arm: str, given: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.benchmarks.recipe_cost", f"--arm={arm}"]
    command += [f"--base_model={given.base_model}", f"--num_steps={given.num_steps}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all arms and writes `recipe_cost.json`.

    Args:
        arguments: Of the command line; those of the process where None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--num_steps", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--arm", choices=ARMS, help="train this arm alone, in this process")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    if given.arm:
        print(json.dumps(measured(given.arm, given.base_model, given.num_steps)))
        return
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(given.repetitions):
        for arm, results in found.items():
            results.append(_in_process(arm, given))
            print(arm, results[-1], flush=True)
    medians = {
        arm: {name: round(median(one[name] for one in results), 3) for name in results[0]}
        for arm, results in found.items()
    }
    settings = {"base_model": given.base_model, "num_steps": given.num_steps, "repetitions": given.repetitions}
    print(keep("recipe_cost", {"settings": settings, "medians": medians, "results": found}, given.output))


if __name__ == "__main__":
    main()
