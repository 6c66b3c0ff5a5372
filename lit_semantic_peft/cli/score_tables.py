"""The tables that `score` prints."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Column, Table

from lit_semantic_peft.cli.conflicts import Conflicts
from lit_semantic_peft.cli.score_folder import Scored
from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.data.doubtful import DOUBTFUL, DoubtfulFact
from lit_semantic_peft.reports import Discrimination, DistanceComparison
from lit_semantic_peft.reports.score_view import QUANTILES, none_left
from lit_semantic_peft.terminal import TextConsole

_SHOWN = 5


def print_scores(found: Scored) -> None:
    """Prints how far the facts are, what the filters would keep, and what is suspicious.

    Args:
        found: What `score` found.
    """
    console, prepared = TextConsole(), found.prepared
    for table in (
        _distance_table(prepared),
        _agreement_table(found.comparison),
        _status_table(prepared),
        _extremes_table(prepared),
    ):
        console.print(table)
    if not prepared.kept_index:
        console.print(none_left(prepared.steps[-1].name, prepared.steps[-1].dropped))
    if found.comparison.predicts is not None:
        console.print(_prediction_table(found.comparison.predicts))
    _print_suspicious(console, found)
    _print_doubtful(console, found.doubtful)
    _print_without_templates(console, prepared)
    if found.conflicts is None:
        console.print("Conflicts between facts: not measured; `--warmup_steps 20` does.")
    else:
        console.print(_conflict_table(prepared, found.conflicts))


def _distance_table(prepared: PreparedFacts) -> Table:
    table = Table(
        Column("distance", overflow="fold"),
        *[f"{quantile:.0%}" for quantile in QUANTILES],
        title="How far the facts are (quantiles)",
        title_justify="left",
    )
    for name, values in prepared.scored.distances.items():
        table.add_row(name, *[f"{value:.3f}" for value in np.quantile(values, QUANTILES)])
    return table


def _agreement_table(comparison: DistanceComparison) -> Table:
    table = Table(
        Column("distance", overflow="fold"),
        *[Column(name, overflow="fold") for name in comparison.names],
        title="How the distances agree (Spearman's rank correlation)",
    )
    table.title_justify = "left"
    for name, row in zip(comparison.names, comparison.rank_correlation, strict=True):
        table.add_row(name, *["–" if np.isnan(value) else f"{value:.2f}" for value in row])
    return table


def _prediction_table(predicts: Mapping[str, Mapping[str, Discrimination]]) -> Table:
    table = Table(
        Column("distance", overflow="fold"),
        *predicts,
        title="What predicts that a fact is learned (AUROC)",
        title_justify="left",
    )
    for name in next(iter(predicts.values())):
        found = [of_distance[name] for of_distance in predicts.values()]
        table.add_row(name, *[f"{one.auroc:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in found])
    counts = [
        f"{outcome}: {one.num_learned} of {one.num_learned + one.num_not_learned} facts"
        for outcome, of_distance in predicts.items()
        for one in list(of_distance.values())[:1]
    ]
    table.caption = f"1: the near facts were learned; 0.5: no information. Learned by {'; '.join(counts)}"
    return table


def _status_table(prepared: PreparedFacts) -> Table:
    table = Table("status", "facts", "mean distance", title="What the filter would do", title_justify="left")
    statuses = [reason or "kept" for reason in prepared.reason]
    for status in sorted(set(statuses), key=lambda one: (one != "kept", one)):
        rows = [row for row, other in enumerate(statuses) if other == status]
        table.add_row(status, str(len(rows)), f"{prepared.scored.distance[rows].mean():.3f}")
    known = int(prepared.scored.is_known.sum())
    table.caption = f"{known} of {len(prepared.facts)} facts are known to the base model already"
    return table


def _extremes_table(prepared: PreparedFacts) -> Table:
    table = Table(
        "distance",
        "prompt",
        "target",
        "base model answers",
        "status",
        title="Nearest and farthest",
        title_justify="left",
    )
    order = np.argsort(prepared.scored.distance, kind="stable")
    nearest, farthest = order[:_SHOWN], order[_SHOWN:][-_SHOWN:]
    for rows in (nearest, farthest):
        for row in rows:
            fact = prepared.facts[row]
            table.add_row(
                f"{prepared.scored.distance[row]:.3f}",
                fact.prompt,
                fact.target,
                prepared.scored.base_answer[row],
                prepared.reason[row] or "kept",
            )
        table.add_section()
    return table


def _print_suspicious(console: TextConsole, found: Scored) -> None:
    console.print(f"Contradictions (same prompt, different targets): {len(found.contradictions)}")
    for contradiction in found.contradictions[:_SHOWN]:
        console.print(f"  {contradiction}")
    repeated = sum(len(group.facts) - 1 for group in found.duplicates)
    of_groups = f" in {len(found.duplicates)} groups" if repeated else ""
    console.print(f"Near-duplicates in the text, facts that nearly repeat another: {repeated}{of_groups}")
    for group in found.duplicates[:_SHOWN]:
        console.print(f"  {group}")


def _print_doubtful(console: TextConsole, doubtful: Sequence[DoubtfulFact]) -> None:
    console.print(
        f"Against what the base model knows with confidence (its own answer has probability {DOUBTFUL:g} or more; "
        f"likely errors, or facts that have changed): {len(doubtful)}"
    )
    for one in doubtful[:_SHOWN]:
        console.print(
            f"  {one.location or one.fact_id}: {one.prompt} {one.target} | base model: {one.answer} "
            f"({one.probability:.2f}; {one.target}: {one.target_probability:.2g})"
        )


def _print_without_templates(console: TextConsole, prepared: PreparedFacts) -> None:
    missing = prepared.forms.without_templates
    named = [f"{relation or 'no relation'} (facts: {count})" for relation, count in missing.items()]
    more = [f"and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
    console.print(f"Relations without templates of forms: {', '.join([*named[:_SHOWN], *more]) or 'none'}")


def _conflict_table(prepared: PreparedFacts, conflicts: Conflicts) -> Table:
    scalars = conflicts.metric.summary()
    table = Table("cosine", "fact", "against", title="Worst conflicts", title_justify="left")
    for left, right, cosine in conflicts.pairs:
        first, second = prepared.facts[left], prepared.facts[right]
        table.add_row(f"{cosine:.3f}", f"{first.prompt} {first.target}", f"{second.prompt} {second.target}")
    table.caption = (
        f"after {conflicts.steps} steps: {scalars['conflict_rate']:.1%} of the pairs in conflict, "
        f"median net transfer {scalars['net_transfer_median']:.2f}"
    )
    return table
