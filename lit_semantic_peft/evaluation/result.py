"""What an evaluation found: the answers of both models, and every number that comes from them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_semantic_peft.evaluation.evaluator import Comparison
from lit_semantic_peft.evaluation.scores import RETENTION, SCORES, Reply, ScoreDefinition, Side
from lit_semantic_peft.metrics import is_pushed_away
from lit_semantic_peft.statistics import bootstrap_interval

_Groups = dict[str, list[Reply]]


@dataclass(frozen=True)
class Evaluation:
    """The answers to every question, and what follows from them. Everything is computed when it is first asked for.

    Attributes:
        comparisons: Every question once, in order, with both sides' answers.
        is_untouched: Which facts had no part in training, bool `(n,)`.
        distance_name: The distance by which `pushed_away` is decided.
    """

    comparisons: Sequence[Comparison]
    is_untouched: NDArray[np.bool_]
    distance_name: str

    @classmethod
    def of_all(
        cls, parts: Iterable[Sequence[Comparison]], is_untouched: NDArray[np.bool_], distance_name: str
    ) -> "Evaluation":
        """From the parts of all processes, which may have asked the same question twice.

        Args:
            parts: What each process asked.
            is_untouched: Which facts had no part in training, bool `(n,)`.
            distance_name: The distance by which `pushed_away` is decided.
        """
        by_number = {row.question.number: row for part in parts for row in part}
        return cls([by_number[number] for number in sorted(by_number)], is_untouched, distance_name)

    @cached_property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """The scores of single facts by column of the fact table, float64 `(n,)`; NaN where not measured."""
        by_side = {side: self._of_facts(side) for side in ("before", "after")}
        return {
            column: np.array([_mean(_values(score, replies)) for replies in by_side[side]])
            for score in SCORES
            for side, column in (("before", score.before), ("after", score.after))
            if column is not None
        }

    @cached_property
    def retention(self) -> dict[str, list[float]]:
        """The numbers behind each of `RETENTION`: one per text, and one per known fact that had no part in training."""
        groups: _Groups = defaultdict(list)
        for reply in self._replies("after"):
            question = reply.comparison.question
            if question.kind != "fact" or self.is_untouched[question.fact_index]:
                groups[question.kind].append(reply)
        return {score.name: _values(score, groups) for score in RETENTION}

    @cached_property
    def text_nll(self) -> tuple[float, float] | None:
        """Mean negative log-likelihood of unrelated text before and after, over all its tokens, nats per token."""
        texts = [row for row in self.comparisons if row.question.kind == "text"]
        if not texts:
            return None
        num_tokens = torch.tensor([row.question.encoded.num_target_tokens for row in texts if row.question.encoded])
        before, after = (
            float((torch.tensor([getattr(row, side).nll for row in texts], dtype=torch.float64) * num_tokens).sum())
            for side in ("before", "after")
        )
        return before / int(num_tokens.sum()), after / int(num_tokens.sum())

    def fact_columns(self) -> dict[str, list[Any]]:
        """The columns of the fact table that come from the answers, a value per fact; None where not measured."""
        columns = {name: _plain(values) for name, values in self.scores.items()}
        for score in SCORES:
            if score.is_flag:
                for column in filter(None, (score.before, score.after)):
                    columns[column] = [None if value is None else bool(value) for value in columns[column]]
        near = Counter(row.question.fact_index for row in self.comparisons if row.question.kind == "neighborhood")
        num_neighbors = [near.get(index) for index in range(len(self.is_untouched))]
        return columns | self._own_prompts() | {"num_neighbors": num_neighbors}

    def probe_columns(self, fact_ids: Sequence[str]) -> dict[str, list[Any]]:
        """The probe table by column, a value per probe that was answered freely.

        Args:
            fact_ids: Of all facts, by fact index.
        """
        free = [row for row in self.comparisons if row.question.max_new_tokens]
        probes = [row for row in free if row.question.kind not in ("fact", "known")]
        return {
            "fact_id": [fact_ids[row.question.fact_index] for row in probes],
            "kind": [row.question.kind for row in probes],
            "prompt": [row.question.prompt for row in probes],
            "target": [row.question.target for row in probes],
            "answer_before": [row.before.text for row in probes],
            "answer_after": [row.after.text for row in probes],
            "unchanged": [row.is_unchanged for row in probes],
            "correct_before": [row.was_known for row in probes],
            "correct_after": [row.is_still_known for row in probes],
            "turn": [row.question.turn for row in probes],
            "nll_before": [row.before.nll for row in probes],
            "nll_after": [row.after.nll for row in probes],
        }

    def scalars(self, is_kept: NDArray[np.bool_], is_dropped: NDArray[np.bool_]) -> dict[str, float]:
        """The scalars to log, by name; what was not measured is left out.

        Args:
            is_kept: Which facts the filters kept, bool `(n,)`.
            is_dropped: Which facts they dropped, bool `(n,)`; facts of the splits `retain` and `probe` are neither.

        Returns:
            Each score of the trained model over the kept facts with the bounds of its interval, `<name>`, `<name>_low`,
            `<name>_high`, and its mean over the dropped ones, `<name>_dropped`; `pushed_away`, share of the kept facts;
            retention with its intervals, and `retention_nll_before` and `retention_nll_after`.
        """
        logged: dict[str, float] = {}
        for score in SCORES:
            values = self.scores[score.after]
            kept, dropped = (values[rows & ~np.isnan(values)] for rows in (is_kept, is_dropped))
            logged |= _with_interval(score.name, kept)
            if len(dropped):
                logged[f"{score.name}_dropped"] = float(dropped.mean())
        pushed = [self.pushed_away[index] for index in self.pushed_away if is_kept[index]]
        if pushed:
            logged["pushed_away"] = sum(pushed) / len(pushed)
        for name, numbers in self.retention.items():
            logged |= _with_interval(name, numbers)
        if self.text_nll is not None:
            logged["retention_nll_before"], logged["retention_nll_after"] = self.text_nll
        return logged

    @cached_property
    def pushed_away(self) -> dict[int, bool]:
        """Whether the trained model is farther from each fact than the base model was in the same evaluation."""
        rows = [row for row in self.comparisons if row.question.kind == "fact"]
        before, after = (
            torch.tensor([getattr(row, side).distances[self.distance_name] for row in rows])
            for side in ("before", "after")
        )
        delta = after - before
        return {
            row.question.fact_index: pushed
            for row, pushed, is_measured in zip(
                rows, is_pushed_away(delta).tolist(), torch.isfinite(delta).tolist(), strict=True
            )
            if is_measured
        }

    def _own_prompts(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(self.is_untouched))
        for row in self.comparisons:
            if row.question.kind != "fact":
                continue
            index, before, after = row.question.fact_index, row.before, row.after
            measured = {
                "nll_before": before.nll,
                "nll_after": after.nll,
                "nll_delta": after.nll - before.nll,
                "answer_before": before.text,
                "answer_after": after.text,
                "begins_right_before": row.was_known,
                "begins_right_after": row.is_still_known,
                "distance_before": before.distances[self.distance_name],
                "distance_after": after.distances[self.distance_name],
                "pushed_away": self.pushed_away.get(index),
            }
            for name, value in measured.items():
                columns[name][index] = value
        return dict(columns)

    def _replies(self, side: Side) -> list[Reply]:
        own = [(row, getattr(row, side)) for row in self.comparisons if row.question.kind == "fact"]
        learned = frozenset(row.question.fact_index for row, answer in own if answer.is_correct)
        recalled = frozenset(row.question.fact_index for row, answer in own if answer.is_recalled)
        return [Reply(row, side, learned, recalled) for row in self.comparisons]

    def _of_facts(self, side: Side) -> list[_Groups]:
        """The replies about each fact, by kind of question."""
        by_fact: list[_Groups] = [defaultdict(list) for _ in self.is_untouched]
        for reply in self._replies(side):
            if (index := reply.comparison.question.fact_index) >= 0:
                by_fact[index][reply.comparison.question.kind].append(reply)
        return by_fact


def _values(score: ScoreDefinition, replies: _Groups) -> list[float]:
    return [float(value) for value in score.values(*(replies.get(kind, []) for kind in score.kinds))]


def _mean(values: Sequence[float]) -> float:
    total = 0.0  # one after the other, as `metrics.FactScore` adds them up over batches
    for value in values:
        total += value
    return total / len(values) if values else float("nan")


def _plain(values: NDArray[np.float64]) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]


def _with_interval(name: str, values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    interval = bootstrap_interval(values)
    if interval is None:
        return {}
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
