"""What is kept of a run: a small JSON file with a number per fact, and what must hold for it to be compared."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from experiments.study.plan import Block, Run, Setting, config_of, keyed, runs_of
from experiments.study.recorder import FILE
from lit_semantic_peft.files import write_json, write_text
from lit_semantic_peft.reports import RunFolder

TOKEN_TOLERANCE = 0.1
"""At equal optimizer steps a filter's facts may be this much longer or shorter than all facts, as a share."""

_DIGITS = 4


class ResultFolder:
    """A folder with a file per run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> dict[str, Any] | None:
        """The result of a run, or None."""
        path = self.path / f"{name}.json"
        if not path.is_file():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def is_done(self, name: str, key: str) -> bool:
        """Whether the result of exactly this run is there."""
        result = self.read(name)
        return result is not None and result["status"] == "done" and result["key"] == key

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """Keeps the result of a run, as a whole or not at all; a list of numbers stands in one line."""
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
        write_text(self.path / f"{name}.json", "{\n" + ",\n".join(lines) + "\n}\n")

    def write_facts(self, key: str, facts: Mapping[str, Any]) -> None:
        """Keeps what is known of some facts before training, once for all their runs."""
        path = self.path / "facts" / f"{key}.json"
        if not path.is_file():
            write_json(path, facts)

    def facts(self, key: str) -> dict[str, Any]:
        """What `write_facts` kept."""
        facts: dict[str, Any] = json.loads((self.path / "facts" / f"{key}.json").read_text(encoding="utf-8"))
        return facts


def measured(folder: Path, num_taught: int, short: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what a run has left behind.

    Args:
        folder: The run folder.
        num_taught: The first so many facts are to be taught; the others are known to the base model.
        short: Only what choosing needs.

    Returns:
        Of the run: what was spent, and by fact (the taught ones first, then the known ones) whether it was kept, its
        recall, likelihood and areas under the learning curve. Of the facts: ids, relations, and where they stood.
    """
    run = RunFolder(folder)
    table = run.facts
    column = {name: table.column(name).to_pylist() for name in table.column_names}
    history = json.loads((folder / FILE).read_text(encoding="utf-8"))
    kept = column["kept"][:num_taught]
    found: dict[str, Any] = {
        "num_taught": num_taught,
        "num_kept": sum(kept),
        "num_steps": history["num_steps"],
        "num_tokens": history["num_tokens"],
        "num_exposures": history["num_exposures"],
        "tokens_of_fact": sum(history["tokens_of_fact"][:num_taught]),
        "tokens_of_kept": sum(
            tokens for tokens, is_kept in zip(history["tokens_of_fact"], kept, strict=False) if is_kept
        ),
        "kept": _bits(kept),
        "recalled": _bits(column["efficacy_teacher_forced_after"]),
        "nll": _rounded(column["nll_after"]),
    }
    if not short:
        found |= {
            "generated": _bits(column["efficacy_after"]),
            "nll_area": _rounded(_area(history, "nll", column["nll_before"], column["nll_after"])),
            "recall_area": _rounded(
                _area(
                    history,
                    "recalled",
                    column["efficacy_teacher_forced_before"],
                    column["efficacy_teacher_forced_after"],
                )
            ),
            "pushed_away": _bits(column["pushed_away"]),
            "locality": _rounded(column["locality"]),
            "text_nll_delta": _rounded(history["text_nll_delta"]),
        }
        if any(value is not None for value in history["start_transfer"]):
            found["start_transfer"] = _rounded(history["start_transfer"])
        alone = run.paths.alone_versus_together
        if alone.is_file():
            difference = json.loads(alone.read_text(encoding="utf-8"))["difference"]
            found["alone_versus_together"] = _rounded([difference.get(one) for one in column["fact_id"]])
    facts = {
        "fact_id": column["fact_id"],
        "relation": column["relation"],
        "distance": _rounded(column["distance"]),
        "nll_before": _rounded(column["nll_before"]),
        "recalled_before": _bits(column["efficacy_teacher_forced_before"]),
    }
    return found, facts


def unfairness(run: Run, found: Mapping[str, Any]) -> str | None:
    """Why a run cannot be compared with the others of its block; None if it can.

    Args:
        run: The run.
        found: What was measured of it.
    """
    epochs, num_facts, num_steps = run.block.epochs, run.block.num_facts, run.block.num_steps
    if not run.arm.has_filter and found["num_kept"] != num_facts:
        return f"{found['num_kept']} of {num_facts} facts were trained by an arm without a filter"
    if run.arm.has_filter and run.pace == "exposures":
        expected = (epochs * found["num_kept"], epochs * found["tokens_of_kept"])
        if (found["num_exposures"], found["num_tokens"]) != expected:
            return f"kept facts were not seen {epochs} times each"
        return None
    if found["num_steps"] != num_steps:
        return f"{found['num_steps']} optimizer steps instead of the block's {num_steps}"
    ratio = found["num_tokens"] / (epochs * found["tokens_of_fact"])
    limit = TOKEN_TOLERANCE if run.arm.has_filter else 0.0
    if abs(ratio - 1) > limit:
        return f"{ratio:.3f} times the tokens of plain training were seen; the limit is 1 ± {limit:g}"
    return None


def choose_learning_rate(run: Run, setting: Setting, results: ResultFolder) -> float | None:
    """The learning rate under which the arm's trained facts are likeliest, on the facts that choose.

    Args:
        run: A reported run.
        setting: Its setting.
        results: What is there.

    Returns:
        The rate; None while a run of the choice is missing. Of equal rates the smallest.
    """
    block = setting.blocks[run.block.tuned_in or run.block.name]
    losses = tried_rates(block, run.arm.name, setting, results)
    if len(losses) < len(block.learning_rates):
        return None
    losses = {rate: loss for rate, loss in losses.items() if loss < math.inf}
    return min(losses, key=lambda rate: (losses[rate], rate), default=None)


def tried_rates(block: Block, arm: str, setting: Setting, results: ResultFolder) -> dict[float, float]:
    """What a learning rate is chosen by: how likely an arm's trained facts are, after training on those that choose.

    Args:
        block: The block that chooses.
        arm: Name of the arm.
        setting: The setting.
        results: What is there.

    Returns:
        Mean NLL per token in nats by rate, infinite where the run failed; without the rates whose run is missing.
    """
    losses: dict[float, float] = {}
    for run in runs_of(setting, "tune"):
        result = results.read(run.name) if run.block == block and run.arm.name == arm else None
        if run.learning_rate is not None and result is not None and result["status"] in ("done", "failed"):
            losses[run.learning_rate] = _trained_nll(result) if result["status"] == "done" else math.inf
    return losses


def finished(run: Run, setting: Setting, results: ResultFolder) -> dict[str, Any] | None:
    """The result of a run, if it is done, and was made with the configuration that the setting now gives it.

    Args:
        run: The run.
        setting: Its setting.
        results: What is there.
    """
    result = results.read(run.name)
    if result is None or result["status"] != "done":
        return None
    rate = run.learning_rate or choose_learning_rate(run, setting, results)
    expected = None if rate is None else keyed(config_of(run, setting, rate, Path(result["facts_key"])))
    if result["depends_on"]["config"] != expected:
        return None
    return result


def bits(text: str) -> np.ndarray:
    """Yes or no per fact, float64 `(n,)`; NaN where not measured."""
    return np.array([{"1": 1.0, "0": 0.0}.get(letter, np.nan) for letter in text])


def _trained_nll(result: Mapping[str, Any]) -> float:
    nll = np.array(result["nll"][: result["num_taught"]], dtype=np.float64)
    return float(nll[bits(result["kept"]) == 1].mean())


def _area(history: Mapping[str, Any], name: str, before: list[Any], after: list[Any]) -> list[float]:
    """Mean over training of a number per fact: trapezoids between its values, over optimizer steps."""
    steps, values = [0, *history["global_step"]], [before, *history[name]]
    if steps[-1] < history["num_steps"]:
        steps, values = [*steps, history["num_steps"]], [*values, after]
    table = np.array(values, dtype=np.float64)
    area: list[float] = (np.trapezoid(table, np.array(steps, dtype=np.float64), axis=0) / steps[-1]).tolist()
    return area


def _bits(values: list[Any]) -> str:
    return "".join("-" if value is None else str(int(value)) for value in values)


def _rounded(values: list[Any]) -> list[float | None]:
    return [None if value is None or value != value else round(float(value), _DIGITS) for value in values]
