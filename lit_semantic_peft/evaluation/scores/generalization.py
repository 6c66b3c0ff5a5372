"""Whether the model answers right when a fact is asked in other words."""

from lit_semantic_peft.evaluation.scores.definition import ScoreDefinition, preferred, right, right_teacher_forced

GENERALIZATION = (
    ScoreDefinition(
        name="generalization",
        label="paraphrases answered right",
        description="Paraphrases answered right.",
        caution="As good as the paraphrases: one that is nearly the training sentence is easy.",
        kinds=("paraphrase",),
        values=right,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="generalization_teacher_forced",
        label="paraphrases, teacher-forced",
        description="Paraphrases whose target tokens all win under the true prefix.",
        caution="Easier than `generalization`.",
        kinds=("paraphrase",),
        values=right_teacher_forced,
    ),
    ScoreDefinition(
        name="generalization_question",
        label="questions answered right",
        description="Facts whose `question` is answered right, as `Question: … Answer:`.",
        caution="A model that was taught no question may continue with another one instead of answering.",
        kinds=("question",),
        values=right,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="generalization_question_teacher_forced",
        label="questions, teacher-forced",
        description="Facts whose target tokens all win behind their `question`, under the true prefix.",
        caution="Easier than `generalization_question`.",
        kinds=("question",),
        values=right_teacher_forced,
    ),
    ScoreDefinition(
        name="generalization_reversed",
        label="subject named from the target",
        description="Facts whose subject is named when the target is given.",
        caution="Asked only where the target belongs to one subject of the relation. Models that learned a fact one "
        "way are usually near 0, which is no fault of the adapter's kind.",
        kinds=("reversed",),
        values=right,
        in_terminal=True,
    ),
    ScoreDefinition(
        name="generalization_reversed_teacher_forced",
        label="subject named, teacher-forced",
        description="Facts whose subject is recalled under the true prefix when the target is given.",
        caution="Easier than `generalization_reversed`.",
        kinds=("reversed",),
        values=right_teacher_forced,
    ),
    ScoreDefinition(
        name="generalization_choice",
        label="target chosen",
        description="Facts whose target is the likeliest of `num_choices` answers, per token.",
        caution="Guessing gives 1/`num_choices`. The wrong choices are the run's other targets, which training made "
        "likelier too.",
        kinds=("choice", "wrong_choice"),
        values=preferred,
    ),
)
