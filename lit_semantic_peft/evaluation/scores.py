"""The scores by name: one name from the table's column to the logger, the summary and the report, and what it means."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoreDefinition:
    """A number per fact, whose mean over facts is a score.

    Attributes:
        name: Name of the score everywhere: key of `summary.json`, behind `test/` in the logger, and the column of the
            fact table. With `has_sides` two columns: `<name>_before` and `<name>_after`.
        label: A few words for people, as a table's first column shows them.
        has_sides: Whether base model and trained model have one each; else it compares the two.
        description: One sentence, with unit and direction.
    """

    name: str
    label: str
    has_sides: bool
    description: str

    @property
    def after(self) -> str:
        """Column of the trained model's side, or of the comparison."""
        return f"{self.name}_after" if self.has_sides else self.name

    @property
    def before(self) -> str | None:
        """Column of the base model's side; None for a comparison."""
        return f"{self.name}_before" if self.has_sides else None


SCORES: tuple[ScoreDefinition, ...] = (
    ScoreDefinition("efficacy", "facts generated", True, "Facts whose free answer is right."),
    ScoreDefinition(
        "efficacy_teacher_forced", "facts recalled, teacher-forced", True, "Facts recalled under the true prefix."
    ),
    ScoreDefinition("efficacy_probability", "probability of the target", True, "Probability of the whole target."),
    ScoreDefinition(
        "efficacy_over_true", "target preferred to the old answer", True,
        "Facts whose target is likelier per token than `target_true`.",
    ),
    ScoreDefinition("generalization", "paraphrases answered", True, "Paraphrases answered right."),
    ScoreDefinition(
        "generalization_teacher_forced", "paraphrases, teacher-forced", True,
        "Paraphrases recalled under the true prefix.",
    ),
    ScoreDefinition(
        "generalization_reversed", "subject named from the target", True,
        "Facts whose subject is named from the target.",
    ),
    ScoreDefinition(
        "generalization_reversed_teacher_forced", "subject named, teacher-forced", True,
        "The same, under the true prefix.",
    ),
    ScoreDefinition(
        "generalization_choice", "target chosen", True, "Facts whose target is the likeliest of the choices."
    ),
    ScoreDefinition(
        "locality", "neighbours' answers unchanged", False, "Neighbours whose free answer stayed the base model's."
    ),
    ScoreDefinition(
        "locality_teacher_forced", "neighbours unchanged, teacher-forced", False,
        "Neighbours where the base model's tokens still win.",
    ),
    ScoreDefinition(
        "locality_kl", "divergence of the neighbours, nats", False,
        "Divergence of the neighbours from the base model, nats; 0 is unchanged.",
    ),
    ScoreDefinition(
        "portability", "conclusions said", True, "Conclusions said, where all facts they need were learned."
    ),
    ScoreDefinition(
        "portability_teacher_forced", "conclusions, teacher-forced", True, "The same, under the true prefix."
    ),
    ScoreDefinition(
        "portability_of_learned", "conclusions from learned facts", True,
        "The same, over conclusions from learned facts alone.",
    ),
    ScoreDefinition(
        "portability_of_learned_teacher_forced", "conclusions from learned facts, teacher-forced", True,
        "The same, over conclusions from learned facts alone and under the true prefix.",
    ),
    ScoreDefinition(
        "robustness_plain", "turns of doubt withstood", True, "Turns of doubt withstood, asked as taught."
    ),
    ScoreDefinition(
        "robustness_chat", "turns of doubt withstood, chat", True, "Turns of doubt withstood, in the chat template."
    ),
)  # fmt: skip
"""All scores of single facts. Retention is of no single fact and stands beside them."""
