"""The results of a setting as tables of seeds by facts."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from experiments.study.plan import PLAIN, Block, Pace, Setting, runs_of
from experiments.study.results import ResultFolder, bits
from experiments.study.statistics import FloatArray, Sample, sample

METRICS = {
    "recalled": "recall, teacher-forced",
    "generated": "recall, generated",
    "nll": "NLL (nats/token)",
    "recall_area": "area under the recall curve",
    "nll_area": "area under the NLL curve",
}
"""What is measured of each taught fact, and how it is called."""


@dataclass(frozen=True)
class Cell:
    """The finished runs of one arm of a block.

    Attributes:
        block: The block.
        arm: Name of the arm.
        group: Its group.
        seeds: Of the runs, ascending.
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

    def values(self, name: str, *, known: bool = False) -> FloatArray:
        """A number per seed and fact, `(seeds, facts)`: of the taught facts, or of those known to the base model."""
        rows = [one.get(name) for one in self.results]
        part = slice(self.num_taught, None) if known else slice(self.num_taught)
        return np.stack(
            [
                bits(row)[part] if isinstance(row, str) else np.array(row, dtype=np.float64)[part]
                for row in rows
                if row is not None
            ]
        )

    def has(self, name: str) -> bool:
        """Whether every run measured it."""
        return all(name in one for one in self.results)

    def sample(self, name: str) -> Sample:
        """Mean over the taught facts and the seeds."""
        return sample(self.values(name))

    def of_facts(self, name: str) -> FloatArray:
        """What was known of the taught facts, `(facts,)`."""
        value = self.facts[name]
        return (bits(value) if isinstance(value, str) else np.array(value, dtype=np.float64))[: self.num_taught]


Cells = dict[tuple[str, str, Pace, bool], Cell]
"""By block, arm, pace, and whether random facts of the same make were dropped."""


def load_cells(setting: Setting) -> Cells:
    """The finished reported runs of a setting.

    An arm whose runs had other facts than the plain ones of its block is left out: it waits for its runs to be redone.

    Args:
        setting: The setting.
    """
    folder = ResultFolder(setting.results)
    found: dict[tuple[str, str, Pace, bool], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    origin = {}
    for run in runs_of(setting, "report"):
        result = folder.read(run.name)
        if result is not None and result["status"] == "done":
            found[run.block.name, run.arm.name, run.pace, run.is_control].append((run.seed, result))
            origin[run.block.name, run.arm.name] = run
    cells: Cells = {}
    for place, rows in found.items():
        plain = found.get((place[0], PLAIN, "steps", False))
        rows = [row for row in rows if plain and row[1]["facts_key"] == plain[0][1]["facts_key"]]
        if rows:
            seeds, results = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
            run = origin[place[:2]]
            facts = folder.facts(results[0]["facts_key"])
            cells[place] = Cell(run.block, run.arm.name, run.arm.group, seeds, results, facts)
    return cells


def paired(left: Cell, right: Cell, name: str, *, known: bool = False) -> FloatArray:
    """Differences left − right over the seeds that both have, `(seeds, facts)`; no row where they share none."""
    common = sorted(set(left.seeds) & set(right.seeds))
    rows = [[cell.seeds.index(seed) for seed in common] for cell in (left, right)]
    difference: FloatArray = left.values(name, known=known)[rows[0]] - right.values(name, known=known)[rows[1]]
    return difference


def effect_of_dropping(filtered: Cell, plain: Cell, name: str) -> Sample:
    """What dropping does to the rest: a number on S after training on S, minus on the same S after training on all."""
    common = [seed for seed in filtered.seeds if seed in plain.seeds]
    rows = [filtered.seeds.index(seed) for seed in common]
    return sample(paired(filtered, plain, name), filtered.kept[rows])
