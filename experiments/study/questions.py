"""The questions of the study: each with an answer made of the numbers, in sentences that they bear out, and a plot."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from experiments.study.cells import COST, MAIN, TAUGHT, Cell, Cells, with_common_seeds
from experiments.study.comparisons import (
    PRIMARY,
    Comparison,
    Dropping,
    against_parts,
    against_plain,
    against_random,
    compare,
    over_relations,
)
from experiments.study.plan import PLAIN, Block, Pace, Setting
from experiments.study.statistics import Sample, adjusted_means, adjusted_trend, rank_correlation, sample
from experiments.study.wording import change, headline, interval, listed, number, share, value_range, verdict
from lit_semantic_peft.reports.phrases import capitalized

NUM_BINS = 5
RECALL, NLL = TAUGHT[MAIN], TAUGHT["nll"]


@dataclass(frozen=True)
class Bar:
    """One mark of a plot: a mean with its interval.

    Attributes:
        label: What was measured.
        sample: The mean.
        num_comparisons: For which its interval is corrected.
        series: Marks of one series have one colour.
    """

    label: str
    sample: Sample
    num_comparisons: int = 1
    series: int = 0


@dataclass(frozen=True)
class Answer:
    """What the numbers say to a question.

    Attributes:
        sentence: The answer.
        points: The numbers behind it, each with what it is of.
        details: More of them, for RESULTS.md alone.
        axis: What the plot shows.
        unit: In which.
        bars: Its marks; none where there is nothing to show.
        failed_claim: What is claimed elsewhere and is not seen here; empty where there is no such claim, or it is seen.
        letter: Of the question.
        question: In words.
    """

    sentence: str
    points: Sequence[str] = ()
    details: Sequence[str] = ()
    axis: str = ""
    unit: str = "%"
    bars: Sequence[Bar] = field(default_factory=tuple)
    failed_claim: str = ""
    letter: str = ""
    question: str = ""


_FEWEST = 5  # taught facts of a relation that is compared with the others
_MISSING = Answer("Not answered yet: the runs for it are missing.")


def answers(setting: Setting, cells: Cells) -> list[Answer]:
    """An answer to every question, from the runs that are there.

    Args:
        setting: The setting.
        cells: Its finished runs.
    """
    plain = cells.get((PRIMARY, PLAIN, "steps", False))
    found: list[Answer | None] = [None] * len(QUESTIONS)
    if plain is not None:
        found = [
            *(_by_distance(plain), _pushed_away(plain), _crowd(setting, cells), _filters(cells, plain)),
            *(_weightings(setting, cells), _both(cells, plain), _cost(cells, plain), _prediction(plain)),
        ]
    return [
        replace(answer or _MISSING, letter=letter, question=question)
        for (letter, question), answer in zip(QUESTIONS.items(), found, strict=True)
    ]


QUESTIONS = {
    "a": "How does recall depend on the distance of the target?",
    "b": "How often does PEFT push the model away, and on which facts?",
    "c": "How much does a fact lose by not being alone?",
    "d": "Do the filters beat the random filter?",
    "e": "Do the weightings beat uniform, and at which budget?",
    "f": "Does a filter with a weighting beat plain training?",
    "g": "What does it cost in locality and retention?",
    "h": "Does the gradient matrix at the start predict who will suffer?",
}


def _by_distance(plain: Cell) -> Answer:
    recalled, distance = plain.values(MAIN), plain.of_facts("distance")
    edges = np.quantile(distance, np.linspace(0, 1, NUM_BINS + 1))
    fifth = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, NUM_BINS - 1)
    third = np.select([fifth == 0, fifth == NUM_BINS - 1], [0, 2], 1)  # nearest, middle, farthest

    def means(group: np.ndarray) -> list[Sample]:
        chosen = [np.broadcast_to(group == one, recalled.shape) for one in range(group.max() + 1)]
        return [sample(recalled, one, kind="share") for one in chosen]

    def ends(found: list[Sample], **more: Sample) -> list[Comparison]:
        return compare({"near": found[0].minus(found[1]), "far": found[2].minus(found[1]), **more})

    trend = adjusted_trend(recalled, distance, plain.relations)
    raw, adjusted = ends(means(third)), ends(adjusted_means(recalled, third, plain.relations), trend=trend)
    if not adjusted[0].difference.num_facts:
        sentence, points = "No relation has both near and far facts, so there is nothing to compare.", []
    else:
        sentence = _too_near_or_far(adjusted[:2])
        points = [
            f"*The nearest fifth of the facts against the middle three:* {change(adjusted[0], '%')} of recall.",
            f"*The farthest fifth against the middle three:* {change(adjusted[1], '%')} of recall.",
            "*From the nearest to the farthest fact, on a straight line over the ranks:* "
            f"{change(adjusted[2], '%')} of recall. This was asked when the results were known.",
        ]
    points += [
        f"*The fifths again, whatever the relation:* {change(raw[0], '%')} for the nearest, {change(raw[1], '%')} for "
        "the farthest. But near and far facts are mostly of different relations.",
        f"*Distances that occur:* {distance.min():.2f} to {distance.max():.2f}. What is nearer still the base model "
        "says already, and is not taught.",
    ]
    labels = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
    bars = [Bar(f"distance {label}", one) for label, one in zip(labels, means(fifth), strict=True)]
    bars += [
        Bar(f"{label}, same mix of relations", one, series=1)
        for label, one in zip(labels, adjusted_means(recalled, fifth, plain.relations), strict=True)
    ]
    failed = "Facts that are too near or too far are recalled less: not seen among facts of the same relation."
    return Answer(
        sentence,
        points,
        axis="recall of plain training by distance before it",
        bars=bars,
        failed_claim="" if any(one.sign < 0 for one in adjusted[:2]) else failed,
    )


def _too_near_or_far(found: Sequence[Comparison]) -> str:
    seen = [name for name, one in zip(("nearest", "farthest"), found, strict=True) if one.sign < 0]
    if seen:
        return f"Among facts of the same relation, the {' and the '.join(seen)} are recalled less."
    loss = max(-one.difference.interval(one.num_comparisons)[0] for one in found)
    return (
        "Among facts of the same relation, neither the nearest nor the farthest are seen to be recalled less. A loss "
        f"of up to {number(max(loss, 0.0), '%')} points is not ruled out."
    )


def _pushed_away(plain: Cell) -> Answer:
    pushed = plain.values("pushed_away")
    worse = (plain.values("nll") > plain.of_facts("nll_before")).astype(np.float64)
    relation = np.array(plain.relations)

    def of(chosen: np.ndarray) -> Sample:
        return sample(pushed, np.broadcast_to(chosen, pushed.shape), kind="share")

    names = sorted(set(plain.relations))
    large = [name for name in names if (relation == name).sum() >= _FEWEST]
    by_relation = {name: of(relation == name) for name in names}
    everything, less_likely = sample(pushed, kind="share"), sample(worse, kind="share")
    sentence = (
        f"It pushes {share(everything)} of the targets away: they lie farther from what the model says after training "
        "than before."
    )
    points = [f"*Less likely than before:* {share(less_likely)} of the targets."]
    if everything.value and len(large) > 1:
        against_rest = compare({name: by_relation[name].minus(of(relation != name)) for name in large})
        most = max(against_rest, key=lambda one: by_relation[one.label].value)
        points.append(
            f"*Pushed away most often:* “{most.label}”, {number(by_relation[most.label].value, '%')} % of its targets. "
            f"That is {'' if most.sign > 0 else 'not '}beyond chance among {len(large)} relations. The difference from "
            f"all others is {change(most, '%')}."
        )
    bars = [Bar(name, one, len(names)) for name, one in by_relation.items()]
    return Answer(sentence, points, axis="share of the taught facts that are pushed away, by relation", bars=bars)


def _crowd(setting: Setting, cells: Cells) -> Answer | None:
    planned = [block.name for block in setting.blocks.values() if _measures_crowding(block, setting.blocks[PRIMARY])]
    plain = [cells[name, PLAIN, "steps", False] for name in planned if (name, PLAIN, "steps", False) in cells]
    plain = sorted((cell for cell in plain if cell.has("alone_versus_together")), key=lambda cell: cell.num_taught)
    if not plain:
        return None
    found = compare({cell.block.name: cell.sample("alone_versus_together") for cell in plain}, len(planned))
    signs, than = {one.sign for one in found}, "when trained together than after as many passes on it alone."
    sentence = {
        frozenset({-1}): f"A fact ends less likely {than}",
        frozenset({1}): f"A fact ends likelier {than}",
        frozenset({0}): f"A fact is not seen to end more or less likely {than}",
        frozenset({-1, 1}): "A fact gains with some numbers of facts and loses with others.",
    }.get(frozenset(signs), "A difference from learning alone is seen for some numbers of facts, and not for others.")
    if len(found) > 1:
        sentence += (
            " This does not say whether more facts interfere more: steps grow with the number of facts, and other "
            "facts are compared."
        )
    pairs = list(zip(found, plain, strict=True))
    points = [
        f"*log p(target) among {cell.num_taught} facts, minus alone:* {change(one, 'nats')} after {cell.num_steps} "
        "steps."
        for one, cell in pairs
    ]
    bars = [
        Bar(f"{cell.num_taught} facts in {cell.num_steps} steps", one.difference, len(planned)) for one, cell in pairs
    ]
    return Answer(sentence, points, axis="log p(target) trained together minus trained alone", unit="nats", bars=bars)


def _measures_crowding(block: Block, primary: Block) -> bool:
    """Whether plain training is compared with training each fact alone, in all but size as in the primary block."""
    alike = all(getattr(block, name) == getattr(primary, name) for name in ("facts", "epochs", "method"))
    return alike and block.alone_facts > 0


def _filters(cells: Cells, plain: Cell) -> Answer | None:
    found, likelihood = (against_random(cells, name, "exposures") for name in (MAIN, "nll"))
    if not found:
        return None

    def ones(comparisons: Sequence[Dropping], part: str) -> list[Comparison]:
        return [getattr(one, part) for one in comparisons]

    difference = ones(found, "difference")
    sentence = (
        f"{headline(difference, RECALL, 'filters', 'the random filter in recall of the kept facts')} Compared is "
        "what the kept facts gain when the others are not trained: by a filter's choice minus by a random one."
    )
    points = [
        f"*Recall.* {verdict(difference, RECALL)}",
        f"*NLL per token.* {verdict(ones(likelihood, 'difference'), NLL)}",
    ]
    details = [
        f"*At equal exposures, by a {choice}, {name}.* {verdict(ones(gains, part), measure)}"
        for part, choice in (("own", "filter's choice"), ("control", "random choice"))
        for name, gains, measure in (("recall", found, RECALL), ("NLL per token", likelihood, NLL))
    ]
    paces: dict[Pace, str] = {"exposures": "as often as there", "steps": "more often"}
    for pace, how_often in paces.items():
        gained = against_random(cells, MAIN, pace)
        if gained:
            num_steps = cells[PRIMARY, gained[0].own.label, pace, False].num_steps
            own, control = (value_range(ones(gained, part), "%") for part in ("own", "control"))
            steps = f"{num_steps} optimizer steps, as in plain training"
            if num_steps < plain.num_steps:
                steps = f"{num_steps} optimizer steps instead of plain training's {plain.num_steps}"
            points.append(
                f"*With {steps}, a kept fact is seen {how_often}.* Recall of the kept facts changes by {own} by a "
                f"filter's choice, and by {control} by a random one."
            )
            if pace == "steps":
                details.append(
                    f"*At equal steps, filter minus random, recall.* {verdict(ones(gained, 'difference'), RECALL)}"
                )
    bars = [
        Bar(f"{one.own.label}: {made}", part.difference, part.num_comparisons, series)
        for one in found
        for series, (made, part) in enumerate(
            (("its choice", one.own), ("random", one.control), ("its choice − random", one.difference))
        )
    ]
    return Answer(
        sentence, points, details, "recall of the kept facts, trained on them minus trained on all", bars=bars
    )


def _weightings(setting: Setting, cells: Cells) -> Answer | None:
    groups = ("weighting", "rival", "aware")
    found = against_plain(cells, PRIMARY, MAIN, groups)
    if not found:
        return None
    primary = setting.blocks[PRIMARY]
    start = f"After {primary.num_steps} steps of {primary.num_facts} facts"
    sentence = headline(
        found, RECALL, "weightings", f"equal weights in recall at the study's main budget of {primary.num_steps} steps"
    )
    points = [f"*{start}.* {verdict(found, RECALL)}{_beyond_these_relations(cells, found)}"]
    details = [f"*{start}, NLL per token.* {verdict(against_plain(cells, PRIMARY, 'nll', groups), NLL)}"]
    for name, block in setting.blocks.items():
        elsewhere = [] if name == PRIMARY else against_plain(cells, name, MAIN, groups)
        if elsewhere:
            rates = block.learning_rates if block.tuned_in is None and block.method == primary.method else ()
            where = f"After {block.num_steps} steps of {block.num_facts} {block.facts} facts, {block.method}"
            where += f", learning rate {' or '.join(f'{rate:g}' for rate in rates)}" if rates else ""
            said = f"*{where}.* {verdict(elsewhere, RECALL)}"
            (points if rates or block.epochs != primary.epochs else details).append(said)
            details.append(f"*{where}, NLL per token.* {verdict(against_plain(cells, name, 'nll', groups), NLL)}")
    return Answer(sentence, points, details, "recall minus that of equal weights", bars=_bars(found))


def _both(cells: Cells, plain: Cell) -> Answer | None:
    found = against_plain(cells, PRIMARY, MAIN, ("both",))
    if not found:
        return None
    likelihood = against_plain(cells, PRIMARY, "nll", ("both",))
    sentence = headline(found, RECALL, "combinations", "plain training in recall over all facts, dropped ones too")
    points = [
        f"*Recall.* {verdict(found, RECALL)}{_beyond_these_relations(cells, found)}",
        f"*NLL per token.* {verdict(likelihood, NLL)}",
    ]
    for one in found:
        cell, other = with_common_seeds(cells[PRIMARY, one.label, "steps", False], plain)
        kept, dropped = (
            " to ".join(f"{number(sample(before.values(MAIN), mask).value, '%')} %" for before in (other, cell))
            for mask in (cell.kept, ~cell.kept)
        )
        points.append(
            f"*`{one.label}` instead of plain training.* Recall of dropped facts goes from {dropped}, of kept ones "
            f"from {kept}."
        )
    details = [f"*Recall, minus that of each part alone.* {verdict(against_parts(cells), RECALL)}"]
    return Answer(
        sentence, points, details, axis="recall over all facts, minus that of plain training", bars=_bars(found)
    )


def _beyond_these_relations(cells: Cells, found: Sequence[Comparison]) -> str:
    """Of what is beyond its interval: whether it still is with the relations drawn anew too."""
    pairs = [
        (one, replace(one, difference=over_relations(cells, PRIMARY, MAIN, one.label))) for one in found if one.sign
    ]
    parts = []
    for said, ones in (
        ("still", [other for one, other in pairs if one.sign == other.sign]),
        ("no longer", [other for one, other in pairs if one.sign != other.sign]),
    ):
        if ones:
            parts.append(f" With whole relations drawn anew, {said} beyond chance: {listed(ones, '%')}.")
    return "".join(parts)


def _cost(cells: Cells, plain: Cell) -> Answer:
    found = {name: against_plain(cells, PRIMARY, name, families=len(COST)) for name in COST}
    text = plain.sample("text_nll_delta")
    bounds = interval(text, "nats", signed=True)
    sentence = (
        f"Plain training leaves {share(plain.sample('locality'))} of the neighbours' answers as they were. It leaves "
        f"{share(plain.sample('known'))} of the known facts recalled. The NLL of unrelated text changes by "
        f"{number(text.value, 'nats', signed=True)} nats per token {bounds}."
    )
    points = [
        f"*{capitalized(COST[name].label)}, against plain training.* {verdict(ones, COST[name])}"
        for name, ones in found.items()
        if ones
    ]
    bars = [
        replace(bar, label=f"{said}: {bar.label}", series=series)
        for series, (name, said) in enumerate((("locality", "neighbours"), ("known", "known facts")))
        for bar in _bars(found[name])
    ]
    axis = "neighbours' answers unchanged and known facts recalled, minus plain training"
    return Answer(sentence, points, axis=axis, bars=bars)


def _prediction(plain: Cell) -> Answer | None:
    if not (plain.has("start_transfer") and plain.has("alone_versus_together")):
        return None
    transfer = plain.values("start_transfer")
    outcomes = {
        "gain by training together": plain.values("alone_versus_together"),
        "likelihood after training": -plain.values("nll"),
    }
    found = compare(
        {
            f"{name}{', same relation' * (within is not None)}": rank_correlation(transfer, outcome, within)
            for within in (plain.relations, None)
            for name, outcome in outcomes.items()
        }
    )
    harm, after, harm_of_all, after_of_all = found
    sentence = {
        1: "Yes: among facts of the same relation, those that the others should help most lose least by joint "
        "training.",
        -1: "No, rather the reverse: among facts of the same relation, those that the others should help most lose "
        "more by joint training.",
        0: "Not seen: among facts of the same relation, the help that a fact should get from the others shows no "
        "relation to what it loses by joint training.",
    }[harm.sign]
    then = {
        1: "Those that the others should help more are likelier",
        -1: "Those that the others should help more are less likely",
        0: "No relation is seen",
    }[after.sign]
    points = [
        f"*Gain by joint training.* {_correlation(harm)}.",
        f"*Likelihood after training.* {then}. {_correlation(after)}.",
        f"*The two among all facts, so between relations too.* {change(harm_of_all, '')} and "
        f"{change(after_of_all, '')}.",
    ]
    axis = "rank correlation over facts with the help expected before training"
    failed = (
        "" if harm.sign > 0 else "The gradient matrix at the start predicts which facts lose by joint training: no."
    )
    return Answer(sentence, points, axis=axis, unit="", bars=_bars(found), failed_claim=failed)


def _correlation(one: Comparison) -> str:
    return f"Spearman {change(one, '')}, {one.difference.num_facts} facts"


def _bars(found: Sequence[Comparison]) -> list[Bar]:
    return [Bar(one.label, one.difference, one.num_comparisons) for one in found]
