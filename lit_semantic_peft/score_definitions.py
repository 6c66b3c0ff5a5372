"""The scores by name: which column of the fact table each is a mean of, and what it means."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoreDefinition:
    """A number per fact, whose mean over facts is a score.

    Attributes:
        name: Name of the score, in `summary.json` and, behind `test/`, in the logger.
        column: Column of the fact table. With `has_sides` two columns: `<column>_before` and `<column>_after`.
        has_sides: Whether base model and trained model have one each; else it compares the two.
        description: One sentence, with unit and direction.
    """

    name: str
    column: str
    has_sides: bool
    description: str

    @property
    def after(self) -> str:
        """Column of the trained model's side, or of the comparison."""
        return f"{self.column}_after" if self.has_sides else self.column

    @property
    def before(self) -> str | None:
        """Column of the base model's side; None for a comparison."""
        return f"{self.column}_before" if self.has_sides else None


SCORES: tuple[ScoreDefinition, ...] = (
    ScoreDefinition("efficacy", "generated", True, "Facts whose free answer is right."),
    ScoreDefinition("efficacy_teacher_forced", "recalled", True, "Facts recalled under the true prefix."),
    ScoreDefinition("efficacy_probability", "target_probability", True, "Probability of the whole target."),
    ScoreDefinition(
        "efficacy_over_true", "prefers_target", True, "Facts whose target is likelier per token than `target_true`."
    ),
    ScoreDefinition("generalization", "paraphrase", True, "Paraphrases answered right."),
    ScoreDefinition(
        "generalization_teacher_forced", "paraphrase_recalled", True, "Paraphrases recalled under the true prefix."
    ),
    ScoreDefinition("generalization_reversed", "reversed", True, "Facts whose subject is named from the target."),
    ScoreDefinition(
        "generalization_reversed_teacher_forced", "reversed_recalled", True, "The same, under the true prefix."
    ),
    ScoreDefinition("generalization_choice", "choice", True, "Facts whose target is the likeliest of the choices."),
    ScoreDefinition("locality", "locality", False, "Neighbours whose free answer stayed the base model's."),
    ScoreDefinition(
        "locality_teacher_forced", "locality_recalled", False, "Neighbours where the base model's tokens still win."
    ),
    ScoreDefinition(
        "locality_kl", "locality_kl", False, "Divergence of the neighbours from the base model, nats; 0 is unchanged."
    ),
    ScoreDefinition("portability", "portability", True, "Conclusions said, where all facts they need were learned."),
    ScoreDefinition("portability_teacher_forced", "portability_recalled", True, "The same, under the true prefix."),
    ScoreDefinition(
        "portability_of_learned", "portability_of_learned", True, "The same, over conclusions from learned facts alone."
    ),
    ScoreDefinition(
        "portability_of_learned_teacher_forced", "portability_of_learned_recalled", True,
        "The same, over conclusions from learned facts alone and under the true prefix.",
    ),
    ScoreDefinition("robustness_plain", "robustness_plain", True, "Turns of doubt withstood, asked as taught."),
    ScoreDefinition("robustness_chat", "robustness_chat", True, "Turns of doubt withstood, in the chat template."),
)  # fmt: skip
"""All scores of single facts. Retention is of no single fact and stands beside them."""
