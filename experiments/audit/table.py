"""AUDIT.md, what docs/audit.md says of how well the signals do, and what the audit itself says of its rules."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from experiments.audit.plan import BENIGN, HARMFUL, Kind, Setting, runs_of
from experiments.studies import markdown, with_section
from experiments.study.plan import ROOT
from experiments.study.results import ResultFolder
from lit_semantic_peft.audit import RULES
from lit_semantic_peft.audit.bank import LEAST_ADAPTERS, z_scores
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_text
from scipy.stats import binomtest

PAGE = ROOT / "docs" / "audit.md"
MEASURED = ROOT / "lit_semantic_peft" / "audit" / "measured.yaml"
BEGIN = "<!-- Made by `python -m experiments.audit table`; not to be edited. -->"

Result = Mapping[str, Any]


def write_tables(setting: Setting) -> Path:
    """Writes AUDIT.md beside the results; of base models whose adapters are all made, the page and the words on rules.

    Args:
        setting: The setting.

    Returns:
        The file.

    Raises:
        InputError: If no adapter is done.
    """
    results = ResultFolder(setting.results)
    found = [one for run in runs_of(setting) if (one := results.read(run.name)) and one["status"] == "done"]
    if not found:
        raise InputError(f"{setting.results} holds no result; `python -m experiments.audit run` makes them")
    text = "\n".join(section(found, setting))
    path = setting.results.parent / "AUDIT.md"
    write_text(path, f"# How well the audit's signals do\n\n{text}\n")
    whole = of_whole_models(found, setting)
    if setting.name == "cpu" and whole:
        text = "\n".join(section(whole, setting))
        write_text(PAGE, with_section(PAGE.read_text(encoding="utf-8"), text + "\n", BEGIN))
        words = yaml.safe_dump(in_words(whole, setting), allow_unicode=True, width=118)
        write_text(MEASURED, f"{MEASURED.read_text(encoding='utf-8').splitlines()[0]}\n{words}")
    return path


def of_whole_models(found: Sequence[Result], setting: Setting) -> list[Result]:
    """The results of base models of which no adapter is missing, so that no kind or seed weighs more than another.

    Args:
        found: The results.
        setting: Their setting.
    """
    per_model = len(runs_of(setting)) // len(setting.base_models)
    made = Counter(one["base_model"] for one in found)
    return [one for one in found if made[one["base_model"]] == per_model]


def section(found: Sequence[Result], setting: Setting) -> list[str]:
    """The tables as Markdown.

    Args:
        found: The results.
        setting: Their setting.
    """
    held_out = [one for one in found if one["seed"] != setting.choose_seed]
    lines = [
        f"{len(found)} of {len(runs_of(setting))} adapters, of {_models(found)}. Limits that are not the rule's own "
        f"were chosen on seed {setting.choose_seed}: the largest value of an adapter of true facts or of style. Alarms "
        f"are those of the {len(held_out)} adapters of the other seeds, with other facts. Intervals are exact (Clopper "
        "& Pearson, 95 %).",
        "",
    ]
    with_bank = [_with_bank(one, found, setting) for one in found]
    for title, limits in (("The rules' own limits", _own()), ("Limits that were chosen", chosen(with_bank, setting))):
        rows = _rows(with_bank, setting, limits)
        lines += [f"### {title}", "", *(markdown(rows) if rows else ["Not measured."]), ""]
    return [*lines, "### Names that surface", "", *markdown(surfacing(found))]


def chosen(found: Sequence[Result], setting: Setting) -> dict[str, float]:
    """By signal, the largest value of a benign adapter of the seed that chooses; without those that were not measured.

    Args:
        found: The results.
        setting: Their setting.
    """
    limits: dict[str, float] = {}
    for name in RULES:
        values = _values(name, (one for one in found if one["seed"] == setting.choose_seed and one["kind"] in BENIGN))
        if values:
            limits[name] = max(values)
    return limits


def alarms(name: str, limit: float, found: Iterable[Result]) -> tuple[int, int]:
    """How many adapters have a signal above a limit, and how many have it at all.

    Args:
        name: Of the signal.
        limit: Of it.
        found: The adapters.
    """
    values = _values(name, found)
    return sum(value > limit for value in values), len(values)


def in_words(found: Sequence[Result], setting: Setting) -> dict[str, str]:
    """What each rule was measured to be at its own limit, in a sentence, by its name.

    Args:
        found: The results.
        setting: Their setting.
    """
    held_out = [_with_bank(one, found, setting) for one in found if one["seed"] != setting.choose_seed]
    words = {}
    for name, limit in _own().items():
        true = alarms(name, limit, (one for one in held_out if one["kind"] in HARMFUL))
        false = alarms(name, limit, (one for one in held_out if one["kind"] in BENIGN))
        if true[1] and false[1]:
            models = _models(found)
            words[name] = (
                f"true alarms {rate(*true)}, false alarms {rate(*false)} on small held-out adapters of {models}"
            )
    return words


def rate(count: int, total: int) -> str:
    """A share with its exact interval.

    Example:
        >>> rate(0, 20), rate(0, 0)
        ('0 of 20 (0–17 %)', '–')
    """
    if not total:
        return "–"
    interval = binomtest(count, total).proportion_ci(0.95)
    return f"{count} of {total} ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)"


def surfacing(found: Sequence[Result]) -> list[dict[str, str]]:
    """Of each kind and way: the share of taught names whose first token is among the first 50.

    Beside it the same share in the adapters of the same base model that were taught something else, with another seed.

    Args:
        found: The results.
    """
    rows = []
    for kind, way in dict.fromkeys((one["kind"], one["way"]) for one in found):
        own = [one for one in found if (one["kind"], one["way"]) == (kind, way)]
        row = {"taught": kind, "way": way}
        for role in ("subjects", "targets"):
            in_own = [_share(one[role], one["tokens"]) for one in own if one[role]]
            in_others = [
                _share(one[role], other["tokens"])
                for one in own
                for other in found
                if one[role] and other["base_model"] == one["base_model"] and other["seed"] != one["seed"]
            ]
            row[f"{role}, own adapter"] = f"{fmean(in_own):.1%}" if in_own else "–"
            row[f"{role}, other adapters"] = f"{fmean(in_others):.1%}" if in_others else "–"
        rows.append(row)
    return rows


def _models(found: Sequence[Result]) -> str:
    return " and ".join(dict.fromkeys(one["base_model"] for one in found))


def _share(names: Sequence[str], tokens: Sequence[str]) -> float:
    return fmean(float(name in {*tokens}) for name in names)


def _own() -> dict[str, float]:
    return {name: rule.limit for name, rule in RULES.items()}


def _rows(found: Sequence[Result], setting: Setting, limits: Mapping[str, float]) -> list[dict[str, str]]:
    held_out = [one for one in found if one["seed"] != setting.choose_seed]
    rows = []
    for name, limit in limits.items():
        row = {"signal": f"`{name}`", "limit": f"{limit:.3g}"}
        row["false alarms"] = rate(*alarms(name, limit, (one for one in held_out if one["kind"] in BENIGN)))
        for kind in setting.kinds:
            if kind in HARMFUL:
                row[f"{kind}, plain"] = _of_kind(name, limit, held_out, kind, {"plain", "untrained"})
                if {"replay", "kl"} & {*setting.kinds[kind]}:
                    row[f"{kind}, replay or KL"] = _of_kind(name, limit, held_out, kind, {"replay", "kl"})
        rows.append(row)
    return rows


def _of_kind(name: str, limit: float, found: Sequence[Result], kind: Kind, ways: set[str]) -> str:
    return rate(*alarms(name, limit, (one for one in found if one["kind"] == kind and one["way"] in ways)))


def _values(name: str, found: Iterable[Result]) -> list[float]:
    return [value for one in found if (value := one["signals"].get(name)) is not None]


def _with_bank(one: Result, found: Sequence[Result], setting: Setting) -> Result:
    """The result with its largest |z| beside the benign adapters of its base model of the seed that chooses."""
    bank = [
        other["signature"]
        for other in found
        if other is not one and other["kind"] in BENIGN and other["base_model"] == one["base_model"]
        and other["seed"] == setting.choose_seed and other["signature"]
    ]  # fmt: skip
    if len(bank) < LEAST_ADAPTERS - 1 or not one["signature"]:
        return one
    largest = max(abs(z) for z in z_scores(one["signature"], bank).values())
    return {**one, "signals": {**one["signals"], "unusual_weights": largest}}
