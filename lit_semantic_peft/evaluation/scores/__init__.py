"""The scores, one entry each: a new one is one more entry, and appears everywhere under its name."""

from lit_semantic_peft.evaluation.scores.definition import Reply, ScoreDefinition, Side
from lit_semantic_peft.evaluation.scores.efficacy import EFFICACY
from lit_semantic_peft.evaluation.scores.generalization import GENERALIZATION
from lit_semantic_peft.evaluation.scores.locality import LOCALITY
from lit_semantic_peft.evaluation.scores.portability import PORTABILITY
from lit_semantic_peft.evaluation.scores.retention import RETENTION
from lit_semantic_peft.evaluation.scores.robustness import ROBUSTNESS
from lit_semantic_peft.evaluation.scores.yes_no import YES_NO

SCORES: tuple[ScoreDefinition, ...] = (*EFFICACY, *GENERALIZATION, *LOCALITY, *PORTABILITY, *YES_NO, *ROBUSTNESS)
"""All scores of single facts, in the order of every table."""

__all__ = ["RETENTION", "SCORES", "Reply", "ScoreDefinition", "Side", "label_of", "score_table"]


def label_of(name: str) -> str:
    """The words that tables, charts and tiles show for a score.

    Args:
        name: Name of the score.

    Raises:
        KeyError: If there is no score of that name.
    """
    return {score.name: score.label for score in (*SCORES, *RETENTION)}[name]


def score_table() -> str:
    """All scores as the Markdown table of `docs/evaluation.md`."""
    lines = ["| score | what it measures | range | better | when it misleads |", "| --- | --- | --- | --- | --- |"]
    for score in (*SCORES, *RETENTION):
        better = "higher" if score.higher_is_better else "lower"
        lines.append(f"| `{score.name}` | {score.description} | {score.range_text} | {better} | {score.caution} |")
    return "\n".join(lines)
