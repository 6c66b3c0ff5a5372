"""The questions of the study: each with an answer made of the numbers, one sentence that they bear out, and a plot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from experiments.study.cells import Cell, Cells, effect_of_dropping, paired
from experiments.study.plan import PLAIN, Setting
from experiments.study.statistics import Sample, holm, rank_correlation, sample
from matplotlib.axes import Axes

PRIMARY = "primary"
NUM_BINS = 5


@dataclass(frozen=True)
class Bar:
    """One mark of a plot: a mean with its interval."""

    label: str
    sample: Sample
    num_comparisons: int = 1


@dataclass(frozen=True)
class Answer:
    """What the numbers say to a question.

    Attributes:
        letter: Of the question.
        question: In words.
        sentence: The answer; says so where the runs for it are missing.
        axis: What the plot shows.
        bars: Its marks; none where there is nothing to show.
    """

    letter: str
    question: str
    sentence: str
    axis: str = ""
    bars: Sequence[Bar] = field(default_factory=tuple)


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


def compare(differences: Mapping[str, Sample]) -> list[Comparison]:
    """A family of comparisons, corrected for its size.

    Args:
        differences: By label.
    """
    adjusted = holm([one.p_value for one in differences.values()])
    return [
        Comparison(label, one, len(differences), p)
        for (label, one), p in zip(differences.items(), adjusted, strict=True)
    ]


def against_plain(cells: Cells, block: str, metric: str, groups: Sequence[str] | None = None) -> list[Comparison]:
    """Each arm minus plain training at equal optimizer steps, over all taught facts.

    Args:
        cells: What is there.
        block: Name of the block.
        metric: A key of `METRICS`.
        groups: Only arms of these groups; all where None.
    """
    plain = cells.get((block, PLAIN, "steps", False))
    return compare(
        {
            arm: sample(difference)
            for arm, cell in arms_of(cells, block, groups)
            if plain is not None and arm != PLAIN and len(difference := paired(cell, plain, metric))
        }
    )


def against_random(cells: Cells, metric: str, pace: str) -> list[Comparison]:
    """What each filter's dropping does to the rest, minus what dropping random facts of the same make does to it.

    Args:
        cells: What is there.
        metric: A key of `METRICS`.
        pace: `steps` or `exposures`.
    """
    plain = cells.get((PRIMARY, PLAIN, "steps", False))
    found = {}
    for (block, arm, at, is_control), cell in cells.items():
        control = cells.get((block, arm, at, True))
        if block != PRIMARY or at != pace or is_control or control is None or plain is None:
            continue
        if set(cell.seeds) & set(control.seeds) & set(plain.seeds):
            found[arm] = effect_of_dropping(cell, plain, metric).minus(effect_of_dropping(control, plain, metric))
    return compare(found)


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


def answers(setting: Setting, cells: Cells) -> list[Answer]:
    """An answer to every question, from the runs that are there.

    Args:
        setting: The setting.
        cells: Its finished runs.
    """
    plain = cells.get((PRIMARY, PLAIN, "steps", False))
    asked: list[tuple[str, str, Callable[[], tuple[str, str, list[Bar]] | None]]] = [
        ("a", "How does recall depend on the distance of the target?", lambda: _by_distance(plain)),
        ("b", "How often does PEFT push the model away, and on which facts?", lambda: _pushed_away(plain)),
        ("c", "How much does a fact lose by not being alone?", lambda: _crowd(cells)),
        ("d", "Do the filters beat the random filter?", lambda: _filters(cells)),
        ("e", "Do the weightings beat uniform, and at which budget?", lambda: _weightings(setting, cells)),
        ("f", "Do filter and weighting together?", lambda: _both(cells)),
        ("g", "What does it cost in locality and retention?", lambda: _cost(cells)),
        ("h", "Does the gradient matrix at the start predict who will suffer?", lambda: _prediction(plain)),
    ]
    found = []
    for letter, question, answer in asked:
        result = answer()
        sentence, axis, bars = result or ("Not answered yet: the runs for it are missing.", "", [])
        found.append(Answer(letter, question, sentence, axis, bars))
    return found


def shown(value: Sample, num_comparisons: int = 1, signed: bool = False) -> str:
    """Mean, interval, and of how many facts and seeds.

    Args:
        value: What to show.
        num_comparisons: How many intervals shall all hold.
        signed: Whether it is a difference.
    """
    if not value.num_facts:
        return "not measured"
    low, high = value.interval(num_comparisons)
    form = "{:+.3f}" if signed else "{:.3f}"
    numbers = [form.format(one) for one in (value.value, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}] ({value.num_facts}×{value.num_seeds})"


def _by_distance(plain: Cell | None) -> tuple[str, str, list[Bar]] | None:
    if plain is None:
        return None
    recalled, distance = plain.values("recalled"), plain.of_facts("distance")
    edges = np.quantile(distance, np.linspace(0, 1, NUM_BINS + 1))
    bins = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, NUM_BINS - 1)

    def mean(*chosen: int) -> Sample:
        return sample(recalled, np.broadcast_to(np.isin(bins, chosen), recalled.shape))

    middle = mean(*range(1, NUM_BINS - 1))
    near, far = compare({"near": middle.minus(mean(0)), "far": middle.minus(mean(NUM_BINS - 1))})
    said = {1: "learn worse than", -1: "learn better than", 0: "cannot be told from"}
    sentence = (
        f"The nearest fifth {said[near.sign]} the middle (middle − nearest {_points(near)}) and the farthest fifth "
        f"{said[far.sign]} the middle (middle − farthest {_points(far)}), so “too near” is "
        f"{'seen' if near.sign > 0 else 'not seen'} and “too far” is {'seen' if far.sign > 0 else 'not seen'}."
    )
    bars = [Bar(f"{edges[at]:.2f} to {edges[at + 1]:.2f}", mean(at)) for at in range(NUM_BINS)]
    return sentence, "recall of plain training by distance before it", bars


def _pushed_away(plain: Cell | None) -> tuple[str, str, list[Bar]] | None:
    if plain is None:
        return None
    pushed = plain.values("pushed_away")
    worse = (plain.values("nll") > plain.of_facts("nll_before")).astype(np.float64)
    relation = np.array(plain.facts["relation"][: plain.num_taught])
    by_relation = {
        name: sample(pushed, np.broadcast_to(relation == name, pushed.shape)) for name in sorted(set(relation.tolist()))
    }
    often = max(by_relation, key=lambda name: by_relation[name].value)
    share = sample(pushed)
    which = f"; most often those of the relation “{often}” ({_share(by_relation[often])})" if share.value else ""
    sentence = (
        f"{_share(share)} of the taught facts are farther after training than before, and {_share(sample(worse))} "
        f"less likely{which}."
    )
    bars = [Bar("all", share), *(Bar(name, one) for name, one in by_relation.items())]
    return sentence, "share of the taught facts that are pushed away, by relation", bars


def _crowd(cells: Cells) -> tuple[str, str, list[Bar]] | None:
    bars, sizes = [], []
    primary = cells.get((PRIMARY, PLAIN, "steps", False))
    for arm, cell in ((arm, cell) for block in _blocks(cells) for arm, cell in arms_of(cells, block)):
        if arm == PLAIN and primary and cell.has("alone_versus_together") and _alike(cell, primary):
            sizes.append((cell.num_taught, cell.sample("alone_versus_together")))
    if not sizes:
        return None
    sizes.sort(key=lambda pair: pair[0])
    bars = [Bar(f"{size} facts", one) for size, one in sizes]
    parts = ", ".join(f"{_nats(one)} among {size}" for size, one in sizes)
    (smallest, first), (largest, last) = sizes[0], sizes[-1]
    if len(sizes) == 1:
        return f"{_CROWD_START} {parts}.", _CROWD_AXIS, bars
    (grows,) = compare({"": last.minus(first)})
    said = {-1: "more is lost", 1: "less is lost", 0: "the loss cannot be told apart"}[grows.sign]
    sentence = f"{_CROWD_START} {parts}: among {largest} {said} than among {smallest}, in more optimizer steps, though."
    return sentence.replace("apart than among", "apart from that among"), _CROWD_AXIS, bars


_CROWD_START = "At equal exposures, training together changes a fact's log-likelihood by"
_CROWD_AXIS = "log p(target) trained together minus trained alone, nats"


def _filters(cells: Cells) -> tuple[str, str, list[Bar]] | None:
    recall, nll = against_random(cells, "recalled", "exposures"), against_random(cells, "nll", "exposures")
    if not recall:
        return None
    sentence = (
        "What dropping does to the rest, against the random control, at equal exposures of the kept facts. In recall: "
        f"{_verdict(recall, 1)}. In likelihood: {_verdict(nll, -1)}."
    )
    return sentence, "effect of dropping on the rest's recall, minus the random control's", _bars(recall)


def _weightings(setting: Setting, cells: Cells) -> tuple[str, str, list[Bar]] | None:
    groups = ("weighting", "rival", "aware")
    primary = against_plain(cells, PRIMARY, "recalled", groups)
    if not primary:
        return None
    likelihood = against_plain(cells, PRIMARY, "nll", groups)
    others = []
    for name, block in setting.blocks.items():
        found = [] if name == PRIMARY else against_plain(cells, name, "recalled", groups)
        if found and cells[name, PLAIN, "steps", False].block.epochs != setting.blocks[PRIMARY].epochs:
            others.append(f" In recall after {block.epochs} epochs of {block.num_facts} facts: {_verdict(found, 1)}.")
    sentence = (
        f"Against uniform weights at the primary budget. In recall: {_verdict(primary, 1)}. In likelihood: "
        f"{_verdict(likelihood, -1)}.{''.join(others)}"
    )
    return sentence, "recall minus that of uniform weights", _bars(primary)


def _both(cells: Cells) -> tuple[str, str, list[Bar]] | None:
    found = against_plain(cells, PRIMARY, "recalled", ("both",))
    if not found:
        return None
    sentence = (
        f"Against plain training at equal optimizer steps, in recall over all facts, dropped ones too: "
        f"{_verdict(found, 1)}."
    )
    return sentence, "recall over all facts, minus that of plain training", _bars(found)


def _cost(cells: Cells) -> tuple[str, str, list[Bar]] | None:
    plain = cells.get((PRIMARY, PLAIN, "steps", False))
    if plain is None:
        return None
    locality = against_plain(cells, PRIMARY, "locality")
    known = known_recall(plain)
    sentence = (
        f"Plain training leaves {_share(plain.sample('locality'))} of the neighbours' answers as they were and "
        f"{_share(known)} of the known facts recalled. Against it, in locality: {_verdict(locality, 1)}."
    )
    return sentence, "locality minus that of plain training", _bars(locality)


def _prediction(plain: Cell | None) -> tuple[str, str, list[Bar]] | None:
    if plain is None or not (plain.has("start_transfer") and plain.has("alone_versus_together")):
        return None
    transfer = plain.values("start_transfer")
    harm = rank_correlation(transfer, plain.values("alone_versus_together"))
    loss = rank_correlation(transfer, -plain.values("nll"))
    tested = compare({"together minus alone": harm, "likelihood after training": loss})
    said = {1: "predicts", -1: "predicts the opposite of", 0: "does not predict"}
    sentence = (
        f"Net transfer before the first step {said[tested[0].sign]} what a fact loses by the others (Spearman "
        f"{_number(tested[0])}) and {said[tested[1].sign]} how likely it is after training ({_number(tested[1])})."
    )
    return sentence, "Spearman correlation over facts with net transfer before training", _bars(tested)


def known_recall(cell: Cell) -> Sample:
    """Share of the facts that the base model recalled teacher-forced, and that were not taught, that it still does."""
    after = cell.values("recalled", known=True)
    before = np.array([letter == "1" for letter in cell.facts["recalled_before"][cell.num_taught :]], dtype=bool)
    return sample(after, np.broadcast_to(before, after.shape))


def _verdict(found: Sequence[Comparison], better: int) -> str:
    """Which arms lie beyond their corrected intervals, and on which side."""
    parts = []
    for sign, said in ((better, "better"), (-better, "worse"), (0, "within the interval")):
        if names := [one.label for one in found if one.sign == sign]:
            parts.append(f"{f'{len(names)} arms' if sign == 0 and len(names) > 4 else ', '.join(names)} {said}")
    return "; ".join(parts)


def _bars(found: Sequence[Comparison]) -> list[Bar]:
    return [Bar(one.label, one.difference, one.num_comparisons) for one in found]


def _blocks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(place[0] for place in cells))


def _alike(cell: Cell, other: Cell) -> bool:
    """Whether two blocks differ in the number of facts alone."""
    return all(getattr(cell.block, name) == getattr(other.block, name) for name in ("facts", "epochs", "method"))


def _number(one: Comparison) -> str:
    low, high = one.difference.interval(one.num_comparisons)
    return f"{one.difference.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _points(one: Comparison) -> str:
    low, high = one.difference.interval(one.num_comparisons)
    return f"{100 * one.difference.value:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"


def _share(one: Sample) -> str:
    if not one.num_facts:
        return "an unmeasured share"
    low, high = one.interval()
    return f"{100 * one.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _nats(one: Sample) -> str:
    low, high = one.interval()
    return f"{one.value:+.2f} nats [{low:+.2f}, {high:+.2f}]"


def draw(answer: Answer, axes: Axes, **style: Any) -> None:
    """A mean with its interval for each bar of an answer.

    Args:
        answer: With bars.
        axes: Where to.
        style: Of the marks.
    """
    for place, bar in enumerate(answer.bars):
        low, high = bar.sample.interval(bar.num_comparisons)
        axes.plot([low, high], [place, place], **{"color": "0.6", "linewidth": 2, **style})
        axes.plot([bar.sample.value], [place], "o", **{"color": "tab:blue", **style})
    axes.set_yticks(range(len(answer.bars)), [bar.label for bar in answer.bars])
    axes.set_ylim(len(answer.bars) - 0.5, -0.5)
    if min(bar.sample.interval(bar.num_comparisons)[0] for bar in answer.bars) < 0:
        axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel(answer.axis)
