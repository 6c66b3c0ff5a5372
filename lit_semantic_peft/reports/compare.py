"""Two runs over the same facts: differences of the scores with paired intervals, and which facts flipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from rich.table import Column, Table

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.scores import SCORES, ScoreDefinition
from lit_semantic_peft.files import atomic_path, refuse_foreign
from lit_semantic_peft.reports.records import Estimate
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.tables import is_fact_column, write_parquet

OUTPUT_SUFFIXES = (".csv", ".parquet")

_KIND = "comparison"
_FLIPPING = "efficacy"
_TEACHES = ("prompt", "target")


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """A score in two runs, over the facts that both measured.

    Attributes:
        name: Name of the score.
        first: Mean in the first run.
        second: Mean in the second run.
        difference: Second minus first, fact by fact, with the 95 % bootstrap interval over facts of the paired
            differences.
    """

    name: str
    first: float
    second: float
    difference: Estimate


@dataclass(frozen=True)
class RunComparison:
    """Comparison of two runs over the same facts.

    Attributes:
        scores: A difference per score that both runs measured.
        gained: Facts whose free answer is right in the second run only, as rows of `facts`.
        lost: Facts whose free answer is right in the first run only, as rows of `facts`.
        facts: A row per common fact: `fact_id, prompt, target, answer_first, answer_second`, `flipped` (`gained`,
            `lost` or null), and per score `<name>_first` and `<name>_second`.
        num_only_first: Facts that only the first run has.
        num_only_second: Facts that only the second run has.
        num_kept_differently: Common facts that one of the runs trained and the other did not.
    """

    scores: tuple[ScoreDifference, ...]
    gained: list[dict[str, Any]]
    lost: list[dict[str, Any]]
    facts: pa.Table
    num_only_first: int
    num_only_second: int
    num_kept_differently: int


def compare_runs(first: str | Path, second: str | Path, *, only_kept: bool = False) -> RunComparison:
    """Compares two run folders fact by fact.

    The interval covers the choice of facts, not seeds or training runs.

    Args:
        first: A run folder that `fit` or `test` left behind.
        second: Another one.
        only_kept: Whether only facts count that both runs trained.

    Raises:
        InputError: A folder is no run folder, its facts were not asked, or the two have no fact in common; or a
            `fact_id` names another prompt or target in the other run.
    """
    tables = [facts_by_id(first), facts_by_id(second)]
    common = [fact_id for fact_id in tables[0] if fact_id in tables[1]]
    if not common:
        raise InputError(
            f"`{first}` and `{second}` have no fact in common by `fact_id`: {_some(tables[0])} against "
            f"{_some(tables[1])}. Compare runs over the same facts."
        )
    refuse_other_facts(first, second, [(tables[0][fact_id], tables[1][fact_id]) for fact_id in common])
    kept = [[table[fact_id]["kept"] is not False for fact_id in common] for table in tables]
    if only_kept:
        common = [fact_id for fact_id, *both in zip(common, *kept, strict=True) if all(both)]
        if not common:
            raise InputError(f"`{first}` and `{second}` trained no fact in common; leave `--only_kept` out")
    pairs = [(tables[0][fact_id], tables[1][fact_id]) for fact_id in common]
    facts = pa.Table.from_pylist([_row(*pair) for pair in pairs], schema=_schema())
    rows = facts.to_pylist()
    differences = (_difference(definition, rows) for definition in SCORES)
    return RunComparison(
        scores=tuple(one for one in differences if one is not None),
        gained=[row for row in rows if row["flipped"] == "gained"],
        lost=[row for row in rows if row["flipped"] == "lost"],
        facts=facts,
        num_only_first=len(tables[0].keys() - tables[1].keys()),
        num_only_second=len(tables[1].keys() - tables[0].keys()),
        num_kept_differently=sum(left != right for left, right in zip(*kept, strict=True)),
    )


def write_comparison(path: str | Path, comparison: RunComparison) -> None:
    """Writes the row per common fact as CSV or Parquet, atomically.

    Args:
        path: The file; must end in one of `OUTPUT_SUFFIXES`.
        comparison: From `compare_runs`.

    Raises:
        InputError: If its suffix is another.
    """
    check_output(path)
    if Path(path).suffix == ".parquet":
        write_parquet(path, comparison.facts, _KIND)
        return
    with atomic_path(path, _KIND, _csv_header()) as temporary:
        pa_csv.write_csv(_without_formulas(comparison.facts), temporary)


def _without_formulas(table: pa.Table) -> pa.Table:
    """The table with an apostrophe before every text that a spreadsheet would run as a formula."""
    for position, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            safe = pc.replace_substring_regex(table.column(position), pattern=r"^(\s*[=+\-@\t\r])", replacement=r"'\1")
            table = table.set_column(position, field, safe)
    return table


def check_output(path: str | Path) -> None:
    """Refuses a file that `write_comparison` could not write.

    Raises:
        InputError: If its name ends in none of `OUTPUT_SUFFIXES`, or it exists and is no comparison.
    """
    if Path(path).suffix not in OUTPUT_SUFFIXES:
        raise InputError(f"`--output` must end in {' or '.join(OUTPUT_SUFFIXES)}, got {str(path)!r}")
    refuse_foreign(path, _KIND, _csv_header() if Path(path).suffix == ".csv" else None)


def difference_table(comparison: RunComparison, first: str, second: str) -> Table:
    """The differences as a table for the terminal.

    Args:
        comparison: From `compare_runs`.
        first: Name of the first run.
        second: Name of the second run.
    """
    table = Table(
        Column("score", no_wrap=True, overflow="fold"),
        *(first, second, "difference (95 % interval)", "n"),
        title_justify="left",
    )
    for one in comparison.scores:
        score = next(score for score in SCORES if score.name == one.name)
        estimate = one.difference
        scale, unit = (100, " points") if score.is_share else (1, f" {score.unit}")
        digits = 1 if score.is_share else 3
        numbers = (estimate.mean, estimate.low, estimate.high)
        signed = [f"{scale * value:+.{digits}f}".replace("-", "−") for value in numbers]
        table.add_row(
            one.name,
            *(f"{100 * value:.1f} %" if score.is_share else f"{value:.3f}" for value in (one.first, one.second)),
            f"{signed[0]}{unit} ({signed[1]} to {signed[2]})",
            str(estimate.num_facts),
        )
    return table


def facts_by_id(run: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of a run's fact table by `fact_id`.

    Args:
        run: A run folder.

    Raises:
        InputError: If its facts were not asked.
    """
    table = RunFolder(run).facts
    if table.column("efficacy_after").null_count == len(table):
        unknown = [name for name in table.column_names if not is_fact_column(name)]
        reason = "its facts were not asked, so there is nothing to compare"
        if unknown:
            reason = (
                "its fact table is of another version of lit-semantic-peft, whose scores this one does not know "
                f"({', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''})"
            )
        raise InputError(
            f"`{run}`: {reason}; `lit-semantic-peft test --config {RunFolder(run).paths.config} --ckpt_path last` asks "
            "its facts"
        )
    return {row["fact_id"]: row for row in table.to_pylist()}


def refuse_other_facts(
    first: str | Path, second: str | Path, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """Refuses runs in which a `fact_id` names different facts.

    Args:
        first: A run folder.
        second: Another one.
        pairs: Rows of the same `fact_id`.

    Raises:
        InputError: If prompt or target differ.
    """
    for left, right in pairs:
        for name in _TEACHES:
            if left[name] != right[name]:
                raise InputError(
                    f"fact {left['fact_id']!r} is another fact in the two runs: `{name}` is {left[name]!r} in "
                    f"`{first}` and {right[name]!r} in `{second}`"
                )


def _row(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    row = {name: left[name] for name in ("fact_id", *_TEACHES)}
    row |= {"answer_first": left["answer_after"], "answer_second": right["answer_after"], "flipped": None}
    for definition in SCORES:
        for name, fact in (("first", left), ("second", right)):
            value = fact[definition.after]
            row[f"{definition.name}_{name}"] = None if value is None else float(value)
    before, after = row[f"{_FLIPPING}_first"], row[f"{_FLIPPING}_second"]
    if before is not None and after is not None and before != after:
        row["flipped"] = "gained" if after > before else "lost"
    return row


def _csv_header() -> str:
    """The first line of a comparison as CSV, which is what it is known by: the format has no place for a mark."""
    return ",".join(f'"{name}"' for name in _schema().names)


def _schema() -> pa.Schema:
    texts = ("fact_id", *_TEACHES, "answer_first", "answer_second", "flipped")
    numbers = [f"{definition.name}_{name}" for definition in SCORES for name in ("first", "second")]
    return pa.schema([(name, pa.string()) for name in texts] + [(name, pa.float64()) for name in numbers])


def _difference(definition: ScoreDefinition, rows: Sequence[dict[str, Any]]) -> ScoreDifference | None:
    pairs = [(row[f"{definition.name}_first"], row[f"{definition.name}_second"]) for row in rows]
    pairs = [(left, right) for left, right in pairs if left is not None and right is not None]
    difference = Estimate.of(right - left for left, right in pairs)
    if difference is None:
        return None
    first, second = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return ScoreDifference(definition.name, first, second, difference)


def _some(facts: dict[str, Any]) -> str:
    names = ", ".join(repr(name) for name in list(facts)[:3])
    return names + (", …" if len(facts) > 3 else "")
