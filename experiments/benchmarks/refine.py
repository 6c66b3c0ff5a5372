"""Whether a second pass over the facts that resist is worth more than as many ordinary steps.

    python -m experiments.benchmarks.refine [--num_facts 64] [--max_steps 48] [--num_refining 16] [--seeds 0 1 2]

Both arms are the recipe on facts of `world` that the base model does not know; their optimizer steps are equally many.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.measured import keep
from lit_semantic_peft.__main__ import main as command
from lit_semantic_peft.reports import RunFolder, Summary

SCORES = (
    "efficacy",
    "efficacy_teacher_forced",
    "generalization",
    "generalization_question",
    "generalization_reversed",
)


def numbers(summary: Summary) -> dict[str, float | None]:
    """What is compared: shares of the kept facts, and what happened to unrelated text and known facts.

    Args:
        summary: Of a run.
    """
    measured = {name: summary.score(name).kept.after for name in SCORES}
    if summary.retention is not None:
        measured |= {"nll_delta": summary.retention.nll_delta, "known": summary.retention.known}
    means = {name: None if estimate is None else estimate.mean for name, estimate in measured.items()}
    return {**means, "num_resisting": summary.num_resisting, "num_kept": summary.num_kept}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains both arms for each seed and writes `refine.json`.

    Args:
        arguments: Of the command line; those of the process where None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--num_facts", type=int, default=64)
    parser.add_argument("--max_steps", type=int, default=48)
    parser.add_argument("--num_refining", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    arms = {
        "refine": [f"--trainer.max_steps={given.max_steps}", f"--refine={given.num_refining}"],
        "longer": [f"--trainer.max_steps={given.max_steps + given.num_refining}"],
    }
    results = []
    for seed in given.seeds:
        for name, length in arms.items():
            with tempfile.TemporaryDirectory() as folder:
                status = command(
                    [
                        "fit", f"--model.base_model={given.base_model}", "--data.facts=world",
                        f"--data.num_facts={given.num_facts}", "--data.selection.filters+=KnownFilter",
                        f"--data.seed={seed}", f"--seed_everything={seed}", "--interference.num_facts=0",
                        "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0",
                        f"--trainer.default_root_dir={folder}/run", *length,
                    ]
                )  # fmt: skip
                if status:
                    raise SystemExit(status)
                results.append({"arm": name, "seed": seed, **numbers(RunFolder(f"{folder}/run").summary)})
    print(keep("refine", {"settings": {**vars(given), "output": None}, "results": results}, given.output))


if __name__ == "__main__":
    main()
