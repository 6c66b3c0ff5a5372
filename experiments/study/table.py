"""RESULTS.md, its plots, and the README's section, all made from the JSON files alone."""

from pathlib import Path

import matplotlib
import numpy as np
from experiments.study.cells import METRICS, Cells, effect_of_dropping, load_cells
from experiments.study.plan import PLAIN, ROOT, Setting, load_setting, runs_of
from experiments.study.questions import (
    PRIMARY,
    Answer,
    Comparison,
    against_plain,
    against_random,
    answers,
    arms_of,
    draw,
    known_recall,
    shown,
)
from experiments.study.results import ResultFolder
from experiments.study.statistics import sample
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_path, write_text
from matplotlib.figure import Figure

README = ROOT / "README.md"
BEGIN = "<!-- Made by `python -m experiments.study table --setting cpu`; not to be edited. -->"
END = "<!-- End of what is made. -->"

_HIGHER_IS_BETTER = {"recalled": True, "generated": True, "nll": False, "recall_area": True, "nll_area": False}


def write_tables(setting: Setting) -> Path:
    """Writes RESULTS.md with its plots and, for the setting `cpu` with its own folder, the README's section.

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
        write_text(README, with_section(README.read_text(encoding="utf-8"), readme_section(setting, cells, found)))
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
        _progress(setting),
        "",
        "A cell reads *mean [95 % interval] (facts×seeds)*. Intervals are bootstraps over facts and seeds at once; "
        "those of differences are corrected for all comparisons of their column (Bonferroni), p-values by Holm. "
        f"Blocks other than `{PRIMARY}` are exploratory.",
        "",
        "## Questions",
        "",
    ]
    for answer in found:
        lines += [f"**({answer.letter}) {answer.question}** {answer.sentence}", ""]
        if answer.bars:
            lines += [f"![{answer.axis}]({(plots / (answer.letter + '.png')).as_posix()})", ""]
    for block in dict.fromkeys(place[0] for place in cells):
        about = setting.blocks[block]
        lines += [
            f"## Block `{block}`",
            "",
            f"{about.num_facts} facts ({about.facts}), {about.epochs} epochs of plain training, {about.method}. All "
            "arms at equal optimizer steps, over all taught facts, also those that a filter drops.",
            "",
            *_arm_table(cells, block),
            "",
        ]
    lines += _filter_section(cells) + _claims_section(cells) + _failures_section(setting)
    return "\n".join(lines).rstrip() + "\n"


def readme_section(setting: Setting, cells: Cells, found: list[Answer]) -> str:
    """What the README says of the study.

    Args:
        setting: The setting.
        cells: Its finished runs.
        found: The answers.
    """
    lines = [_progress(setting), ""]
    if cells:
        lines += [f"- **{answer.question}** {answer.sentence}" for answer in found]
        lines += [
            "",
            "Tables, plots and what failed: [`experiments/results/RESULTS.md`](experiments/results/RESULTS.md).",
        ]
    return "\n".join(lines).rstrip() + "\n"


def with_section(text: str, section: str) -> str:
    """A README with its section on the study exchanged.

    Args:
        text: The README.
        section: What to put between the two marks.

    Raises:
        InputError: If the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"README.md must hold the lines {BEGIN!r} and {END!r}, with what is made between them")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def _progress(setting: Setting) -> str:
    folder = ResultFolder(setting.results)
    runs = [*runs_of(setting, "tune"), *runs_of(setting, "report")]
    states = [(folder.read(run.name) or {"status": "missing"})["status"] for run in runs]
    done = states.count("done")
    if not done:
        return f"No run of the setting `{setting.name}` has been made yet; {len(runs)} are planned."
    if done == len(runs):
        return f"All {done} runs of the setting `{setting.name}` are done."
    return f"{done} of {len(runs)} runs of the setting `{setting.name}` are done, {states.count('failed')} failed."


def _arm_table(cells: Cells, block: str) -> list[str]:
    differences = {name: {one.label: one for one in against_plain(cells, block, name)} for name in METRICS}
    head = ["arm", "learning rate", *METRICS.values()]
    head += [f"Δ {METRICS[name]}" for name in ("recalled", "nll", "nll_area")] + ["p (Δ recall)"]
    head += ["locality", "known facts recalled", "Δ NLL of unrelated text"]
    lines = [_row(head), _row(["---"] * len(head))]
    for arm, cell in arms_of(cells, block):
        row = [arm, f"{cell.learning_rate:g}", *(shown(cell.sample(name)) for name in METRICS)]
        row += [_difference(differences[name].get(arm)) for name in ("recalled", "nll", "nll_area")]
        row += [f"{differences['recalled'][arm].p_value:.3f}" if arm in differences["recalled"] else ""]
        text = [one["text_nll_delta"] for one in cell.results]
        row += [shown(cell.sample("locality")), shown(known_recall(cell)), _of_texts(text)]
        lines.append(_row(row))
    return lines


def _filter_section(cells: Cells) -> list[str]:
    plain = cells.get((PRIMARY, PLAIN, "steps", False))
    rows = []
    for pace in ("exposures", "steps"):
        for metric in ("recalled", "nll"):
            for one in against_random(cells, metric, pace):
                assert plain is not None
                own, control = (cells[PRIMARY, one.label, pace, is_control] for is_control in (False, True))
                rows.append(
                    _row(
                        [
                            one.label, f"equal {pace}", METRICS[metric],
                            shown(effect_of_dropping(own, plain, metric), signed=True),
                            shown(effect_of_dropping(control, plain, metric), signed=True),
                            _difference(one), f"{one.p_value:.3f}",
                        ]
                    )
                )  # fmt: skip
    if not rows:
        return []
    head = ["filter", "at", "of the kept facts", "after training on them − on all", "the same for random facts"]
    head += ["filter − random", "p"]
    about = [
        "## What dropping does to the rest",
        "",
        "S are the kept facts. The random control drops as many facts of each relation. Facts×seeds count facts that "
        "were kept at least once.",
        "",
    ]
    return [*about, _row(head), _row(["---"] * len(head)), *rows, ""]


def _claims_section(cells: Cells) -> list[str]:
    """Every comparison of the primary block that does not come out for the arm."""
    failed = []
    for metric, higher in _HIGHER_IS_BETTER.items():
        better = 1 if higher else -1
        for one in against_plain(cells, PRIMARY, metric):
            if one.sign != better:
                said = "is worse" if one.sign == -better else "cannot be told from plain training"
                failed.append(f"- `{one.label}`, {METRICS[metric]}: {said} ({_difference(one)}).")
    if not failed:
        return []
    about = "What was tried against plain training in the primary block and did not win beyond its interval:"
    return ["## Claims that fail", "", about, "", *failed, ""]


def _failures_section(setting: Setting) -> list[str]:
    folder = ResultFolder(setting.results)
    lines = []
    for run in [*runs_of(setting, "tune"), *runs_of(setting, "report")]:
        result = folder.read(run.name)
        if result is not None and result["status"] != "done":
            lines.append(f"- `{run.name}`: {result['status']}. {result.get('error', '')}".rstrip())
    return ["## Runs that did not end well", "", *lines, ""] if lines else []


def _difference(one: Comparison | None) -> str:
    return shown(one.difference, one.num_comparisons, signed=True) if one else ""


def _of_texts(rows: list[list[float]]) -> str:
    return shown(sample(np.array(rows, dtype=np.float64)), signed=True)


def _row(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def _plot(answer: Answer, path: Path) -> None:
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(6, 0.9 + 0.25 * len(answer.bars)), layout="constrained")
        draw(answer, figure.subplots())
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=100, metadata={"Software": None})
