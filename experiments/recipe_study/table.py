"""RECIPE.md, its picture, and the README's table, all made from the JSON files alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
from experiments.recipe_study.facts import INVENTED
from experiments.recipe_study.passages import Role
from experiments.recipe_study.plan import PLAIN, FactKind, Model, Setting, Way, runs_of
from experiments.studies import markdown, with_section
from experiments.study.plan import ROOT
from experiments.study.results import ResultFolder
from experiments.study.statistics import FloatArray, Sample, over_seeds, sample
from experiments.study.wording import interval, number
from lit_semantic_peft.facts import given_facts
from lit_semantic_peft.files import atomic_path, write_text
from matplotlib.figure import Figure

README = ROOT / "README.md"
BEGIN = "<!-- Made by `python -m experiments.recipe_study table`; not to be edited. -->"
RECIPE = "recipe"
IN_README = {PLAIN: "plain", RECIPE: "recipe", "gated": "recipe, gated"}
"""Ways of the README's table, and what it calls them."""
_NOT_YET = """The recipe is not yet measured with several seeds;
[one seed](experiments/results/RECIPE.md) and [one run of the quickstart](docs/quickstart.md#what-one-run-gave) show
what to expect."""


@dataclass(frozen=True)
class Measure:
    """A number of the tables.

    Attributes:
        name: As in the results.
        label: Its column.
        unit: Of its numbers.
        by_seed: Whether seeds are nearly all of its chance, so that the interval is over them alone.
    """

    name: str
    label: str
    unit: str = "%"
    by_seed: bool = False

    def of(self, values: FloatArray, clusters: Sequence[str] | None = None) -> Sample:
        """The mean over seeds (rows) and facts or passages (columns); those of a cluster are not independent."""
        return over_seeds(values) if self.by_seed else sample(values, kind="share", clusters=clusters)


MEASURES = {
    one.name: one
    for one in (
        Measure("recalled", "taught prompts recalled"),
        Measure("paraphrases", "in held-out words"),
        Measure("questions", "as questions"),
        Measure("reversed", "reversed"),
        Measure("known", "other known facts kept"),
        Measure("neighbours", "neighbours unchanged"),
        Measure("text_nll_delta", "unrelated text, nats", "nats", by_seed=True),
    )
}


@dataclass(frozen=True)
class Bound:
    """What the recipe is asked for.

    Attributes:
        measure: A key of `MEASURES`.
        limit: At least so much, for text at most; of 1 where the unit is %.
        beyond_plain: Whether it is the difference from plain.
    """

    measure: str
    limit: float
    beyond_plain: bool = False

    def is_met(self, value: float) -> bool:
        """Whether a number keeps to it."""
        return value <= self.limit if self.measure == "text_nll_delta" else value >= self.limit

    def judged(self, measured: Sample) -> str:
        """Whether a mean keeps to it, and so does its whole interval.

        Args:
            measured: The mean.
        """
        if not self.is_met(measured.value):
            return "**no**"
        return "yes" if all(map(self.is_met, measured.interval())) else "in the mean, not beyond chance"

    def __str__(self) -> str:
        measure = MEASURES[self.measure]
        which = "at most" if self.measure == "text_nll_delta" else "at least"
        return (
            f"{measure.label}: {which} {number(self.limit, measure.unit)} {'above plain' * self.beyond_plain}".strip()
        )


BOUNDS: dict[FactKind, tuple[Bound, ...]] = {
    "real": (
        Bound("recalled", 0.97),
        Bound("paraphrases", 0.0, beyond_plain=True),
        Bound("questions", 0.95),
        Bound("questions", 0.10, beyond_plain=True),
        Bound("reversed", 0.30, beyond_plain=True),
        Bound("known", 0.25, beyond_plain=True),
        Bound("text_nll_delta", 0.05),
    ),
    "invented": (Bound("recalled", 0.90), Bound("known", 0.85), Bound("text_nll_delta", 0.10)),
}
"""Written before anything was reported."""

Results = Sequence[Mapping[str, Any]]


def write_tables(setting: Setting) -> Path:
    """Writes the page with its picture and, for the results that the project shows, the README's table.

    Args:
        setting: The setting.

    Returns:
        Path of the page.
    """
    path = setting.results.with_name("RECIPE.md") if is_published(setting) else setting.results / "RECIPE.md"
    picture = setting.results / "frontier.png"
    _draw(setting, picture)
    write_text(path, page(setting, picture.relative_to(path.parent)))
    if is_published(setting):
        write_text(README, with_section(README.read_text(encoding="utf-8"), readme_section(setting), BEGIN))
    return path


def page(setting: Setting, picture: Path) -> str:
    """RECIPE.md.

    Args:
        setting: The setting.
        picture: Relative to the page.
    """
    lines = [
        "# Plain LoRA and the recipe",
        "",
        "Made by `python -m experiments.recipe_study table` from the JSON files.",
        "",
        "`plain` is LoRA on the facts' own prompts; its learning rate is the one that recalls most held-out "
        "paraphrases of the facts that choose. `recipe` is the default of `fit`; it also teaches questions and "
        "reversed sentences, in other words than are asked. Both take the same number of optimizer steps of "
        f"{setting.facts_per_step} facts, and the same number of taught texts, but the recipe ends earlier where no "
        "fact resists. Recall is teacher-forced. *Other known facts* were known to the base model before, are about "
        "other subjects, and were neither taught nor retained. In brackets: intervals of 95 % over facts and seeds, of "
        "unrelated text over seeds alone; of neighbours over the different ones, which facts share. The real facts are "
        "of four relations, and relations differ more than the intervals say: they are of these relations.",
        "",
    ]
    for model in setting.models:
        lines += [f"## {model.name}", ""]
        for kind in setting.num_facts:
            lines += _kind_section(setting, model, kind)
        lines += _choice_section(setting, model)
    lines += [f"![Held-out paraphrases against unrelated text, of every way that was run]({picture.as_posix()})"]
    return "\n".join(lines).rstrip() + "\n"


def readme_section(setting: Setting) -> str:
    """The README's table: plain and the recipe, also behind a gate, on real facts, for each base model.

    Args:
        setting: The setting.
    """
    rows = [
        {"": f"{model.name}, {label}", "seeds": str(len(found)), **_row(found)}
        for model in setting.models
        for name, label in IN_README.items()
        if (found := finished(setting, model, "real", name))
    ]
    if not rows:
        return f"{_NOT_YET}\n"
    return "\n".join(markdown(rows)) + "\n"


def finished(setting: Setting, model: Model, kind: FactKind, way: str) -> Results:
    """The finished reported runs of a way, by seed.

    Args:
        setting: The setting.
        model: The base model.
        kind: Of the facts.
        way: Name of the way.
    """
    results = ResultFolder(setting.results)
    found = [
        results.read(run.name)
        for run in runs_of(setting, "report")
        if (run.model, run.kind, run.way.name) == (model, kind, way)
    ]
    return [one for one in found if one is not None and one["status"] == "done"]


def mean_of(found: Results, measure: Measure) -> Sample:
    """A measure over the seeds of a way.

    Args:
        found: Its runs.
        measure: The measure.
    """
    return measure.of(_values(found, measure.name), _clusters(found, measure))


def _clusters(found: Results, measure: Measure) -> Sequence[str] | None:
    """Of each taught fact the neighbour that was asked, which several facts share; None for other measures."""
    if measure.name != "neighbours" or not found:
        return None
    return [_neighbour_of().get(fact_id, fact_id) for fact_id in found[0]["fact_id"]]


@cache
def _neighbour_of() -> dict[str, str]:
    facts = chain.from_iterable(given_facts(one) for one in ("world", *map(str, INVENTED.values())))
    return {fact.id: fact.neighborhood[0].prompt for fact in facts if fact.neighborhood}


def _values(found: Results, name: str) -> FloatArray:
    return np.array([one[name] for one in found], dtype=np.float64)


def _paired(ours: Results, plain: Results, measure: Measure) -> Sample | None:
    """The difference of the seeds that both have."""
    seeds = {one["seed"] for one in ours} & {one["seed"] for one in plain}
    if not seeds:
        return None
    left, right = (_values([one for one in found if one["seed"] in seeds], measure.name) for found in (ours, plain))
    if measure.by_seed:
        return over_seeds(left - right)
    return sample(left, kind="share").minus(sample(right, kind="share"))


def _kind_section(setting: Setting, model: Model, kind: FactKind) -> list[str]:
    found = {way: finished(setting, model, kind, way) for way in setting.ways}
    found = {way: results for way, results in found.items() if results}
    if not found:
        return [f"{kind.capitalize()} facts: no run is finished yet.", ""]
    first = next(iter(found.values()))[0]
    lines = [f"### {setting.num_facts[kind]} {kind} facts, {len(first['known'])} other known ones", ""]
    rows = [
        {
            "": f"`{way}`",
            "steps": str(results[0]["num_steps"]),
            "seeds": str(len(results)),
            **_row(results),
            "CPU seconds a step": number(_median(results, "step_cpu_seconds"), "nats"),
            "GB": number(_median(results, "peak_memory_gb"), "nats"),
        }
        for way, results in found.items()
    ]
    lines += [*markdown(rows), ""]
    lines += [f"- `{way}`: {setting.ways[way].about}." for way in found]
    if RECIPE in found:
        lines += ["", *markdown(list(_bound_rows(found[RECIPE], found.get(PLAIN, []), kind))), ""]
    return lines


def _bound_rows(ours: Results, plain: Results, kind: FactKind) -> Iterator[dict[str, str]]:
    for bound in BOUNDS[kind]:
        measure = MEASURES[bound.measure]
        value = _paired(ours, plain, measure) if bound.beyond_plain else mean_of(ours, measure)
        if value is None or math.isnan(value.value):
            continue
        tabled = _tabled(value, measure.unit, bound.beyond_plain)
        yield {"bound": str(bound), "measured": tabled, "met": bound.judged(value)}


def _choice_section(setting: Setting, model: Model) -> list[str]:
    """What was tried on the facts that choose, one seed each."""
    results = ResultFolder(setting.results)
    rows, names = [], set()
    for run in runs_of(setting, "choose"):
        found = results.read(run.name) if run.model == model else None
        if found is None or found["status"] != "done":
            continue
        names.add(run.way.name)
        rate = f", rate {run.learning_rate:g}" if run.learning_rate else ""
        values = {one.label: number(mean_of([found], one).value, one.unit) for one in MEASURES.values()}
        rows.append({"": f"`{run.way.name}`{rate}", "facts": run.kind, "steps": str(found["num_steps"]), **values})
    if not rows:
        return []
    about = [f"- `{one.name}`: {one.about}." for name, one in setting.tried.items() if name in names]
    return ["### Tried on other facts, which chose, one seed", "", *markdown(rows), "", *about, ""]


def _row(found: Results) -> dict[str, str]:
    return {one.label: _tabled(mean_of(found, one), one.unit, signed=one.unit == "nats") for one in MEASURES.values()}


def _tabled(value: Sample, unit: str, signed: bool) -> str:
    if not value.num_facts:
        return "–"
    bounds = interval(value, unit, signed=signed) if np.isfinite(value.interval()).all() else "[one seed]"
    return f"{number(value.value, unit, signed)} {bounds}"


def _median(found: Results, name: str) -> float:
    return float(np.median([one[name] for one in found]))


def is_published(setting: Setting) -> bool:
    """Whether its results are those that the project shows."""
    return setting.results == ROOT / "experiments" / "results" / "recipe_study"


def _colour(way: Way) -> str:
    return "C2" if way.is_routed else "C1" if way.is_recipe else "C0"


def _draw(setting: Setting, path: Path) -> None:
    """Held-out paraphrases, and known facts, against what unrelated text lost: a point per way."""
    results = ResultFolder(setting.results)
    runs = [run for role in get_args(Role) for run in runs_of(setting, role) if run.kind == "real"]
    done = [(run, found) for run in runs if (found := results.read(run.name)) and found["status"] == "done"]
    models = list(dict.fromkeys(run.model for run, _ in done))
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(8, 0.5 + 3.2 * len(models)), layout="constrained")
        panels = figure.subplots(max(1, len(models)), 2, squeeze=False)
        for row, model in zip(panels, models, strict=False):
            for axes, name in zip(row, ("paraphrases", "known"), strict=True):
                for run, found in ((run, found) for run, found in done if run.model == model):
                    place = (mean_of([found], MEASURES[one]).value for one in ("text_nll_delta", name))
                    marker = "o" if run.role == "report" else "x"
                    axes.plot(*([value] for value in place), marker, color=_colour(run.way))
                axes.set(title=model.name, ylabel=f"{MEASURES[name].label}, share", xscale="symlog", ylim=(0, 1.03))
                axes.set_xlabel("unrelated text, nats per token (0: unchanged)")
        figure.suptitle(
            "Blue: plain LoRA; orange: the recipe and parts of it; green: behind a gate.\n"
            "Crosses: facts that choose; dots: reported.",
            fontsize=9,
        )
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=100, metadata={"Software": None})
