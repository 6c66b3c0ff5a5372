"""RESULTS.md, its plots, and the section of `docs/study.md`, all made from the JSON files alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
from experiments.studies import markdown, with_section
from experiments.study.cells import COST, MAIN, MEASURES, TAUGHT, Cells, Measure, effective_facts, load_cells
from experiments.study.comparisons import (
    PRIMARY,
    Comparison,
    against_plain,
    against_random,
    arms_of,
    over_relations,
)
from experiments.study.plan import PLAIN, ROOT, Block, Run, Setting, load_arm, load_setting, runs_of
from experiments.study.questions import Answer, answers
from experiments.study.results import ResultFolder, finished, tried_rates
from experiments.study.wording import NAMED, SCALE, change, number, tabled
from lit_semantic_peft.files import atomic_path, write_text
from matplotlib.figure import Figure

PAGE = ROOT / "docs" / "study.md"
BEGIN = "<!-- Made by `python -m experiments.study table --setting cpu`; not to be edited. -->"
_SHOWN = "e"
"""The plot that the page shows."""


def write_tables(setting: Setting) -> Path:
    """Writes RESULTS.md with its plots and, for the setting `cpu` with its own folder, the page's section.

    Args:
        setting: The setting.

    Returns:
        Path of RESULTS.md.
    """
    path = results_path(setting)
    cells = load_cells(setting)
    found = answers(setting, cells)
    plots = setting.results / "plots"
    for answer in found:
        if answer.bars:
            _plot(answer, plots / f"{answer.letter}.png")
    write_text(path, results_page(setting, cells, found, plots.relative_to(path.parent)))
    if is_published(setting):
        write_text(PAGE, with_section(PAGE.read_text(encoding="utf-8"), page_section(setting, cells, found), BEGIN))
    return path


def is_published(setting: Setting) -> bool:
    """Whether a setting's results are those that the project shows."""
    return setting.name == "cpu" and setting.results == load_setting("cpu").results


def results_path(setting: Setting) -> Path:
    """Where RESULTS.md stands."""
    return (ROOT / "experiments" / "results" if is_published(setting) else setting.results) / "RESULTS.md"


def results_page(setting: Setting, cells: Cells, found: list[Answer], plots: Path) -> str:
    """RESULTS.md.

    Args:
        setting: The setting.
        cells: Its finished runs.
        found: The answers.
        plots: Folder of the plots, relative to the page.
    """
    lines = [
        f"# Results of the study, setting `{setting.name}`",
        "",
        f"Made by `python -m experiments.study table --setting {setting.name}` from the JSON files.",
        _progress(setting, cells),
        "",
        f"**{TAUGHT[MAIN].label.capitalize()}, is the primary outcome**; all other measures are secondary. Blocks "
        f"other than `{PRIMARY}` are exploratory.",
        "",
        "A cell reads *mean [95 % interval] (facts×seeds)*: in % for shares, in points for their differences, in nats "
        "for likelihoods. Intervals are bootstraps over facts and seeds at once, and a little wider for the error of "
        "the resampling; those of unrelated text, where seeds are nearly all of the chance, are Student's over the "
        "seeds. Those of differences are corrected for all comparisons that their column will hold once every planned "
        "run is there (Bonferroni), p-values likewise (Holm).",
        "",
        "The learning rate of an arm is the one under which its trained facts become likeliest; with a filter, the "
        "facts that it keeps. Where it is the largest tried, a still larger one may be better.",
        "",
        "## Questions",
        "",
    ]
    for answer in found:
        lines += [f"**({answer.letter}) {answer.question}** {answer.sentence}", ""]
        if answer.points:
            lines += [*(f"- {one}" for one in (*answer.points, *answer.details)), ""]
        if answer.bars:
            lines += [f"![{answer.axis}]({(plots / (answer.letter + '.png')).as_posix()})", ""]
    lines += _arms_section(cells)
    for block in dict.fromkeys(place[0] for place in cells):
        lines += _block_section(setting, cells, setting.blocks[block])
    lines += (
        _filter_section(cells) + _choice_section(setting) + _claims_section(cells, found) + _failures_section(setting)
    )
    return "\n".join(lines).rstrip() + "\n"


def page_section(setting: Setting, cells: Cells, found: list[Answer]) -> str:
    """What `docs/study.md` says was found.

    Args:
        setting: The setting.
        cells: Its finished runs.
        found: The answers.
    """
    lines = [_progress(setting, cells), ""]
    if cells:
        lines += [
            "Brackets hold 95 % intervals, for other facts of these relations and other seeds. Those of differences "
            "are corrected for all planned comparisons of their kind. “No difference seen” means that such an interval "
            "holds 0, not that there is no difference. [All results](study_results.md) say what each name does.",
            "",
        ]
        for answer in found:
            lines += [f"- **{answer.question}** {answer.sentence}", *(f"  - {one}" for one in answer.points)]
        plots = Path("..", "experiments", "results", "study", setting.name, "plots")
        shown = [one for one in found if one.letter == _SHOWN and one.bars]
        lines += ["", *(f"![{one.axis}]({(plots / one.letter).as_posix()}.png)" for one in shown)]
        lines += ["", "Tables, plots and what failed: [all results](study_results.md)."]
    return "\n".join(lines).rstrip() + "\n"


def _progress(setting: Setting, cells: Cells) -> str:
    """What is done, what it took, and how the learning rates were chosen."""
    runs, folder = _all_runs(setting), ResultFolder(setting.results)
    states = [one["status"] for run in runs if (one := folder.read(run.name)) is not None]
    done = [(run, result) for run in runs if (result := finished(run, setting, folder)) is not None]
    counts = {"failed": states.count("failed"), "outdated": states.count("done") - len(done)}
    others = "".join(f", {number} {state}" for state, number in counts.items() if number)
    if not done:
        return f"No run of the setting `{setting.name}` is done yet; {len(runs)} are planned{others}."
    spent, planned = sum(result["seconds"] for _, result in done), sum(run.seconds(setting) for run, _ in done)
    said = (
        f"{len(done)} of {len(runs)} runs of the setting `{setting.name}` are done{others}. They took "
        f"{spent / 3600:.1f} hours of one process by the clock, pauses included. That is {spent / planned:.1f} times "
        "what was planned."
    )
    arms = [cell for _, cell in arms_of(cells, PRIMARY)]
    rates = [cell.learning_rate for cell in arms]
    if rates:
        block = setting.blocks[PRIMARY]
        tried = _rates(setting, block)
        said += f" {len(rates)} of {len(block.arms)} ways of training have results"
        few = [len(cell.seeds) for cell in arms if len(cell.seeds) < len(block.seeds)]
        said += (
            f", {len(few)} of them of fewer than {len(block.seeds)} seeds (at least {min(few)}). What is said of these "
            "is preliminary."
            if few
            else "."
        )
        if len(tried) > 1:
            most = "all" if set(rates) == {max(tried)} else f"{rates.count(max(tried))} of {len(rates)}"
            said += (
                f" Learning rates of {' and '.join(f'{rate:g}' for rate in tried)} were tried with one seed on other "
                f"facts; {most} took the largest."
            )
    return said


def _all_runs(setting: Setting) -> list[Run]:
    return [*runs_of(setting, "tune"), *runs_of(setting, "report")]


def _rates(setting: Setting, block: Block) -> tuple[float, ...]:
    return setting.blocks[block.tuned_in or block.name].learning_rates


def _block_section(setting: Setting, cells: Cells, block: Block) -> list[str]:
    arms = list(arms_of(cells, block.name))
    num_relations = len(set(arms[0][1].relations))
    found = {name: {one.label: one for one in against_plain(cells, block.name, name)} for name in MEASURES}
    notes = ""
    if block.tuned_in is not None:
        notes += f" Learning rates are those chosen in `{block.tuned_in}`."
    if block.added_later:
        notes += " Planned when results of the other blocks were known."
    cost_names = [name for name in COST if name != "known" or block.facts != "counterfactual"]
    if "known" not in cost_names:
        notes += " Which false statements the model believed before is no retention, so known facts are not shown."
    taught, cost = (
        [_arm_row(setting, cells, block, arm, {name: found[name].get(arm) for name in names}) for arm, _ in arms]
        for names in (TAUGHT, cost_names)
    )
    return [
        f"## Block `{block.name}`",
        "",
        f"{block.num_facts} facts ({block.facts}), {block.epochs} epochs of plain training, {block.method}. All arms "
        f"at equal optimizer steps, over all taught facts, also those that a filter drops.{notes}",
        "",
        *markdown(taught),
        "",
        *markdown(cost),
        "",
        f"Intervals are for facts of these {num_relations} relations; they say nothing of other relations. Only the "
        "column with whole relations drawn anew does, roughly, as they are few. Areas under the curves are trapezoids "
        "between the ends of epochs. With a filter epochs end at other steps, which changes the areas by itself: they "
        "are left out.",
        "",
    ]


def _arm_row(
    setting: Setting, cells: Cells, block: Block, arm: str, differences: Mapping[str, Comparison | None]
) -> dict[str, str]:
    cell, tried = cells[block.name, arm, "steps", False], _rates(setting, block)
    row = {"arm": arm}
    if MAIN in differences:
        at_end = len(tried) > 1 and cell.learning_rate == max(tried)
        row["learning rate"] = f"{cell.learning_rate:g}{' (largest tried)' * at_end}"
    for name, delta in differences.items():
        measure = MEASURES[name]
        value = tabled(cell.sample(name), measure.unit) if delta or arm == PLAIN else ""
        row[f"{measure.label} ({measure.unit})"] = value
        row[f"Δ {measure.label}"] = _difference(delta, measure)
        if name == MAIN:
            wide = replace(delta, difference=over_relations(cells, block.name, name, arm)) if delta else None
            row["p"] = f"{delta.p_value:.3f}" if delta else ""
            row["Δ, whole relations drawn anew"] = _difference(wide, measure)
    return row


def _filter_section(cells: Cells) -> list[str]:
    rows = [
        {
            "block": block,
            "filter": one.difference.label,
            "at": f"equal {pace}",
            "of the kept facts": TAUGHT[name].label,
            "after training on them − on all": _difference(one.own, TAUGHT[name]),
            "the same for random facts": _difference(one.control, TAUGHT[name]),
            "filter − random": _difference(one.difference, TAUGHT[name]),
            "p": f"{one.difference.p_value:.3f}",
        }
        for block in dict.fromkeys(place[0] for place in cells)
        for pace in ("exposures", "steps")
        for name in (MAIN, "nll")
        for one in against_random(cells, name, pace, block)
    ]
    if not rows:
        return []
    about = [
        "## What dropping does to the rest",
        "",
        "The random control drops as many facts of each relation. At equal exposures a filter's runs have fewer "
        "optimizer steps. Facts×seeds count facts that were kept at least once; intervals are corrected for all "
        "filters.",
        "",
    ]
    return [*about, *markdown(rows), ""]


def _arms_section(cells: Cells) -> list[str]:
    """What each way of training does, and how unequal its weights are."""
    rows = []
    for name, cell in arms_of(cells, PRIMARY):
        arm, effective = load_arm(name), effective_facts(cell)
        later = " Planned when results of others were known." if arm.added_later else ""
        rows.append(
            {
                "arm": name,
                "kind": arm.group,
                "what it does": f"{arm.about}{later}",
                "facts that count": "" if effective is None else f"{effective:.0f} of {int(cell.kept[0].sum())}",
            }
        )
    if not rows:
        return []
    about = [
        "## Ways of training",
        "",
        "Facts that count: (Σ w)² / Σ w² over the trained facts, where weights are fixed before training. Near their "
        "number weights are nearly equal, and much of a difference cannot be expected.",
        "",
    ]
    return [*about, *markdown(rows), ""]


def _choice_section(setting: Setting) -> list[str]:
    """What each arm's learning rate was chosen by; blocks that teach alike share a row."""
    folder = ResultFolder(setting.results)
    found: dict[str, dict[float, float]] = {}
    for block in setting.blocks.values():
        if block.tuned_in is None:
            for arm in block.arms:
                row = f"{arm}, {block.num_facts} facts ({block.facts}), {block.epochs} epochs, {block.method}"
                found.setdefault(row, {}).update(tried_rates(block, arm, setting, folder))
    rates = sorted({rate for losses in found.values() for rate in losses})
    rows = [
        {"arm": name, **{f"{rate:g}": _loss(losses.get(rate)) for rate in rates}}
        for name, losses in found.items()
        if losses
    ]
    if not rows:
        return []
    about = [
        "## Choice of the learning rate",
        "",
        "NLL per token (nats) of the facts that an arm trains, after training on facts about other subjects with one "
        "seed, by learning rate. The lowest is taken, of the rates that the block lists.",
        "",
    ]
    return [*about, *markdown(rows), ""]


def _loss(value: float | None) -> str:
    if value is None:
        return ""
    return number(value, "nats") if math.isfinite(value) else "failed"


def _claims_section(cells: Cells, found: Sequence[Answer]) -> list[str]:
    """Of every arm, and of every filter beside its random control, in what it does not win; and the other claims."""
    lines = [f"- {answer.failed_claim}" for answer in found if answer.failed_claim]
    for block in dict.fromkeys(place[0] for place in cells):
        tried = {name: against_plain(cells, block, name) for name in TAUGHT}
        lines += _failed(tried, f"against plain training, block `{block}`")
        beside_random = {
            name: [one.difference for one in against_random(cells, name, "exposures", block)] for name in (MAIN, "nll")
        }
        lines += _failed(beside_random, f"of the kept facts, against its random control, block `{block}`")
    if not lines:
        return []
    about = "What was tried and did not win beyond its interval:"
    return ["## Claims that fail", "", about, "", *lines, ""]


def _failed(tried: Mapping[str, Sequence[Comparison]], where: str) -> list[str]:
    failed: dict[str, dict[str, list[str]]] = {}
    for name, comparisons in tried.items():
        measure = TAUGHT[name]
        for one in comparisons:
            if one.sign != measure.better and load_arm(one.label).group != "control":
                said = "worse" if one.sign else "no difference seen"
                text = f"{measure.label} ({change(one, measure.unit)})"
                failed.setdefault(one.label, {}).setdefault(said, []).append(text)
    lines = []
    for arm, by_kind in failed.items():
        parts = [f"{said} in {', '.join(texts)}" for said, texts in by_kind.items()]
        lines.append(f"- `{arm}`, {where}: {'; '.join(parts)}.")
    return lines


def _failures_section(setting: Setting) -> list[str]:
    folder = ResultFolder(setting.results)
    lines = []
    for run in _all_runs(setting):
        result = folder.read(run.name)
        if result is not None and result["status"] != "done":
            lines.append(f"- `{run.name}`: {result['status']}. {result.get('error', '')}".rstrip())
    return ["## Runs that did not end well", "", *lines, ""] if lines else []


def _difference(one: Comparison | None, measure: Measure) -> str:
    return tabled(one.difference, measure.unit, one.num_comparisons, signed=True) if one else ""


def _plot(answer: Answer, path: Path) -> None:
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 1.2 + 0.27 * len(answer.bars)), layout="constrained")
        _draw(answer, figure)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=100, metadata={"Software": None})


def _draw(answer: Answer, figure: Figure) -> None:
    """A mean with its interval for each bar, and how many facts and seeds are behind it."""
    axes, lowest = figure.subplots(), 0.0
    for place, bar in enumerate(answer.bars):
        low, high = (SCALE[answer.unit] * end for end in bar.sample.interval(bar.num_comparisons))
        axes.plot([low, high], [place, place], color="0.6", linewidth=2)
        axes.plot([SCALE[answer.unit] * bar.sample.value], [place], "o", color=f"C{bar.series}")
        lowest = min(lowest, low)
    labels = [f"{bar.label} ({bar.sample.num_facts}×{bar.sample.num_seeds})" for bar in answer.bars]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    if lowest < 0:
        axes.axvline(0, color="0.3", linewidth=0.8)
        unit = NAMED[answer.unit].strip()
    else:
        unit = answer.unit
    (size,) = {bar.num_comparisons for bar in answer.bars}
    corrected = f", corrected for {size} comparisons" if size > 1 else ""
    figure.supxlabel(f"{answer.axis}{', ' * bool(unit)}{unit}\n(facts×seeds; intervals of 95 %{corrected})", fontsize=9)
