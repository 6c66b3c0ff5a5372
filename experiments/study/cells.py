"""The results of a setting as tables of seeds by facts."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from experiments.study.plan import PLAIN, Block, Pace, Run, Setting, load_arm, runs_of
from experiments.study.results import ResultFolder, bits, finished
from experiments.study.statistics import FloatArray, Sample, over_seeds, sample
from lit_semantic_peft import semantics
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import Online, Scheduled, loss_weights

Unit = Literal["%", "nats"]


@dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
        label: In words.
        unit: In which it is shown.
        better: 1 where higher is better, else −1.
    """

    label: str
    unit: Unit
    better: int


MAIN = "recalled"
"""The primary outcome; all others are secondary."""

TAUGHT = {
    MAIN: Measure("recall, teacher-forced", "%", 1),
    "generated": Measure("recall, generated", "%", 1),
    "nll": Measure("NLL per token", "nats", -1),
    "recall_area": Measure("area under the recall curve", "%", 1),
    "nll_area": Measure("area under the NLL curve", "nats", -1),
}
"""What is measured of each taught fact."""

COST = {
    "locality": Measure("neighbours' answers unchanged", "%", 1),
    "known": Measure("known facts still recalled", "%", 1),
    "text_nll_delta": Measure("NLL per token of unrelated text, minus before", "nats", -1),
}
"""What is measured of everything else."""

MEASURES = TAUGHT | COST

_OF_TEXTS = "text_nll_delta"
"""Of a few texts that answer alike; how a training went is nearly all of its chance."""


@dataclass(frozen=True)
class Cell:
    """The finished runs of one arm of a block.

    Attributes:
        block: The block.
        arm: Name of the arm.
        group: Its group.
        seeds: Of the runs, in the order of the block.
        results: One per seed.
        facts: What was known of the facts before training.
    """

    block: Block
    arm: str
    group: str
    seeds: tuple[int, ...]
    results: tuple[dict[str, Any], ...]
    facts: dict[str, Any]

    @property
    def num_taught(self) -> int:
        """Facts that are taught; the others are known to the base model."""
        return int(self.results[0]["num_taught"])

    @property
    def learning_rate(self) -> float:
        """The chosen one."""
        return float(self.results[0]["learning_rate"])

    @property
    def kept(self) -> np.ndarray:
        """Which facts were trained, bool `(seeds, facts)`."""
        kept: np.ndarray = np.stack([bits(one["kept"]) for one in self.results]) == 1
        return kept

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return int(self.results[0]["num_steps"])

    @property
    def steps_of_epoch(self) -> int:
        """Optimizer steps between two points of the learning curves."""
        return math.ceil(int(self.results[0]["num_kept"]) / self.block.facts_per_step)

    @property
    def relations(self) -> list[str]:
        """Of the taught facts."""
        return list(self.facts["relation"][: self.num_taught])

    def values(self, name: str) -> FloatArray:
        """A number per seed and taught fact (`known`: fact known to the base model; `text_nll_delta`: text)."""
        if name == _OF_TEXTS:
            return np.array([one[name] for one in self.results], dtype=np.float64)
        if name == "known":
            rows = np.stack([bits(one["recalled"]) for one in self.results])[:, self.num_taught :]
            return np.where(bits(self.facts["recalled_before"])[self.num_taught :] == 1, rows, np.nan)
        values = [one[name] for one in self.results]
        found = [bits(one) if isinstance(one, str) else np.array(one, dtype=np.float64) for one in values]
        return np.stack(found)[:, : self.num_taught]

    def has(self, name: str) -> bool:
        """Whether every run measured it."""
        return all(name in one for one in self.results)

    def sample(self, name: str) -> Sample:
        """Mean over the facts and the seeds."""
        if name == _OF_TEXTS:
            return over_seeds(self.values(name))
        return sample(self.values(name), kind="share" if _is_share(name) else "number")

    def of_seeds(self, seeds: Sequence[int]) -> "Cell":
        """The runs of some seeds."""
        chosen = [(seed, one) for seed, one in zip(self.seeds, self.results, strict=True) if seed in seeds]
        return replace(self, seeds=tuple(seed for seed, _ in chosen), results=tuple(one for _, one in chosen))

    def of_facts(self, name: str) -> FloatArray:
        """What was known of the taught facts, `(facts,)`."""
        value = self.facts[name]
        return (bits(value) if isinstance(value, str) else np.array(value, dtype=np.float64))[: self.num_taught]


Cells = dict[tuple[str, str, Pace, bool], Cell]
"""By block, arm, pace, and whether random facts of the same make were dropped."""


def load_cells(setting: Setting) -> Cells:
    """The finished reported runs of a setting, of blocks whose plain runs are there.

    Args:
        setting: The setting.

    Raises:
        InputError: If the runs of a block were made under different conditions.
    """
    folder = ResultFolder(setting.results)
    found: dict[tuple[str, str, Pace, bool], list[tuple[Run, dict[str, Any]]]] = defaultdict(list)
    for run in runs_of(setting, "report"):
        result = finished(run, setting, folder)
        if result is not None:
            found[run.block.name, run.arm.name, run.pace, run.is_control].append((run, result))
    cells: Cells = {}
    for place, rows in found.items():
        if plain := found.get((place[0], PLAIN, "steps", False)):
            for run, result in rows:
                _require_alike(run.name, result, *plain[0])
            seeds, results = zip(*((run.seed, result) for run, result in rows), strict=True)
            run, result = rows[0]
            cells[place] = Cell(
                run.block, run.arm.name, run.arm.group, seeds, results, folder.facts(result["facts_key"])
            )
    return cells


def _require_alike(name: str, result: dict[str, Any], reference: Run, expected: dict[str, Any]) -> None:
    """Refuses to compare what other facts, weights, libraries or versions of the study gave."""
    for key in ("facts_key", "base_fingerprint", "versions", "threads", "study_version"):
        values = [one[key] if key in one else one["depends_on"][key] for one in (result, expected)]
        if values[0] != values[1]:
            raise InputError(
                f"{name}.json and {reference.name}.json cannot be compared: `{key}` is {values[0]!r} and "
                f"{values[1]!r}. `python -m experiments.study run` with the same setting makes what is outdated anew."
            )


def effective_facts(cell: Cell) -> float | None:
    """How many facts of equal weight a weighting is worth: (Σ w)² / Σ w² over the facts trained under the first seed.

    Args:
        cell: The runs of an arm.

    Returns:
        The number; None where there is no weighting, or weights change in training.
    """
    described = load_arm(cell.arm).config.get("data", {}).get("selection", {}).get("weighting")
    if described is None:
        return None
    weighting_class = getattr(semantics, described["class_path"].rpartition(".")[2])
    if weighting_class in (Online, Scheduled):  # by the model in training, or from the start of training to its end
        return None
    weighting = weighting_class(**described.get("init_args", {}))
    column = cell.of_facts("nll_before" if weighting.needs_nll else "distance")
    weight = loss_weights(weighting, column[cell.kept[0, : cell.num_taught]])
    return float(weight.sum() ** 2 / (weight**2).sum())


def with_common_seeds(*cells: Cell) -> list[Cell]:
    """Cells with the runs of the seeds that all of them have.

    Args:
        cells: Of one block.
    """
    common = set.intersection(*(set(cell.seeds) for cell in cells))
    return [cell.of_seeds(sorted(common)) for cell in cells]


def paired(left: Cell, right: Cell, name: str) -> FloatArray:
    """Differences left − right over the seeds that both have, `(seeds, facts)`.

    Args:
        left: Of the same block as `right`, with a seed in common.
        right: What to take off.
        name: A key of `MEASURES`.
    """
    left, right = with_common_seeds(left, right)
    return left.values(name) - right.values(name)


def mean_difference(left: Cell, right: Cell, name: str, **options: Any) -> Sample:
    """Mean of `paired`.

    Args:
        left: One cell.
        right: Another one of the same facts.
        name: A key of `MEASURES`.
        options: Of `sample`.
    """
    differences = paired(left, right, name)
    if name == _OF_TEXTS:
        return over_seeds(differences)
    return sample(differences, kind="difference of shares" if _is_share(name) else "number", **options)


def effect_of_dropping(filtered: Cell, plain: Cell, name: str) -> Sample:
    """What dropping does to the rest: a number on S after training on S, minus on the same S after training on all.

    Args:
        filtered: Trained on S.
        plain: Trained on all.
        name: A key of `TAUGHT`.
    """
    filtered, plain = with_common_seeds(filtered, plain)
    return mean_difference(filtered, plain, name, mask=filtered.kept)


def _is_share(name: str) -> bool:
    return name in MEASURES and MEASURES[name].unit == "%"
