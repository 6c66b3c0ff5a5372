"""Differences between arms, in families whose size was planned before the runs were there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.study.cells import MAIN, Cell, Cells, effect_of_dropping, mean_difference, with_common_seeds
from experiments.study.plan import PLAIN, is_group, load_arm
from experiments.study.statistics import Sample, holm

PRIMARY = "primary"


@dataclass(frozen=True)
class Comparison:
    """A difference from what it is measured against, one of a family of comparisons.

    Attributes:
        label: What is compared.
        difference: Its mean and resamples.
        num_comparisons: Size of the family.
        p_value: Adjusted for it (Holm).
    """

    label: str
    difference: Sample
    num_comparisons: int
    p_value: float

    @property
    def sign(self) -> int:
        """1 or −1 where the corrected interval lies above or below 0, else 0."""
        low, high = self.difference.interval(self.num_comparisons)
        return int(low > 0) - int(high < 0)


def compare(differences: Mapping[str, Sample], num_planned: int = 0) -> list[Comparison]:
    """A family of comparisons, corrected for its size.

    Args:
        differences: By label.
        num_planned: How many the family will have once all runs are there. Those that are missing count as if they
            will show nothing, so intervals and p-values do not grow when they come.
    """
    size = max(num_planned, len(differences))
    p_values = [one.p_value for one in differences.values()]
    adjusted = holm([*p_values, *[1.0] * (size - len(p_values))])
    return [
        Comparison(label, one, size, p)
        for (label, one), p in zip(differences.items(), adjusted[: len(p_values)], strict=True)
    ]


def arms_of(cells: Cells, block: str, groups: Sequence[str] | None = None) -> Iterator[tuple[str, Cell]]:
    """The arms of a block at equal optimizer steps, plain first.

    Args:
        cells: What is there.
        block: Name of the block.
        groups: Only arms of these groups; all where None.
    """
    for (name, arm, pace, is_control), cell in cells.items():
        if name == block and pace == "steps" and not is_control and (groups is None or cell.group in groups):
            yield arm, cell


def against_plain(
    cells: Cells, block: str, name: str, groups: Sequence[str] | None = None, families: int = 1
) -> list[Comparison]:
    """Each arm minus plain training at equal optimizer steps; the family is all arms that the block plans.

    Areas under curves are compared only where the curves were taken at the same steps: between few points a bent curve
    seems higher than it is, the more so the farther apart they are.

    Args:
        cells: What is there.
        block: Name of the block.
        name: A key of `MEASURES`.
        groups: Only arms of these groups; all where None.
        families: How many such families one claim rests on, all of which it is corrected for.
    """
    plain = cells.get((block, PLAIN, "steps", False))
    if plain is None:
        return []
    found = {
        arm: mean_difference(cell, plain, name)
        for arm, cell in arms_of(cells, block, groups)
        if arm != PLAIN
        and set(cell.seeds) & set(plain.seeds)
        and (not name.endswith("_area") or cell.steps_of_epoch == plain.steps_of_epoch)
    }
    return compare(found, families * (len(plain.block.arms) - 1))


def over_relations(cells: Cells, block: str, name: str, arm: str) -> Sample:
    """As `against_plain` of one arm, with whole relations drawn anew: what holds for other relations as well.

    Args:
        cells: What is there.
        block: Name of the block.
        name: A key of `TAUGHT`.
        arm: Name of the arm.
    """
    cell, plain = cells[block, arm, "steps", False], cells[block, PLAIN, "steps", False]
    return mean_difference(cell, plain, name, clusters=plain.relations)


def against_parts(cells: Cells, name: str = MAIN) -> list[Comparison]:
    """Each arm of the primary block with a filter and more, minus each arm that has only one of both; all planned.

    Args:
        cells: What is there.
        name: A key of `MEASURES`.
    """
    cell_of = dict(arms_of(cells, PRIMARY))
    arms = [load_arm(arm) for arm in next(iter(cell_of.values())).block.arms] if cell_of else []
    pairs = [
        (whole.name, part.name)
        for whole in arms
        for part in arms
        if whole.group == "both" and part.name not in (PLAIN, whole.name) and _is_part(part.config, whole.config)
    ]
    found = {
        f"{whole} − {part}": mean_difference(cell_of[whole], cell_of[part], name)
        for whole, part in pairs
        if {whole, part} <= cell_of.keys() and set(cell_of[whole].seeds) & set(cell_of[part].seeds)
    }
    return compare(found, len(pairs))


def _is_part(config: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether everything that an arm sets is set alike by another one."""
    return all(
        key in whole
        and (value == whole[key] or (is_group(value) and is_group(whole[key]) and _is_part(value, whole[key])))
        for key, value in config.items()
    )


@dataclass(frozen=True)
class Dropping:
    """What dropping facts does to the rest: training on the rest minus training on all.

    Attributes:
        own: With a filter's choice.
        control: With a random choice of the same make.
        difference: own − control.
    """

    own: Comparison
    control: Comparison
    difference: Comparison


def against_random(cells: Cells, name: str, pace: str, block: str = PRIMARY) -> list[Dropping]:
    """Every filter's dropping beside random dropping, over the seeds that all runs have; families of all filters.

    Args:
        cells: What is there.
        block: Name of the block.
        name: A key of `TAUGHT`.
        pace: `steps` or `exposures`.
    """
    plain = cells.get((block, PLAIN, "steps", False))
    own, control = {}, {}
    for (place, arm, at, is_control), cell in cells.items():
        random = cells.get((block, arm, at, True))
        if plain is None or random is None or place != block or at != pace or is_control:
            continue
        shared = with_common_seeds(cell, random, plain)
        if shared[0].seeds:
            own[arm] = effect_of_dropping(shared[0], shared[2], name)
            control[arm] = effect_of_dropping(shared[1], shared[2], name)
    if plain is None or not own:
        return []
    num_filters = sum(load_arm(arm).group == "filter" for arm in plain.block.arms)
    differences = {arm: own[arm].minus(control[arm]) for arm in own}
    families = [compare(one, num_filters) for one in (own, control, differences)]
    return [Dropping(*one) for one in zip(*families, strict=True)]
