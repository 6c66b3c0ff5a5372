"""What is asked at the end, beside each fact's own prompt."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from lit_semantic_peft.arguments import require_instances, require_whole_number
from lit_semantic_peft.errors import InputError

ProbeKind = Literal["paraphrase", "question", "reversed", "choice", "neighborhood", "portability", "yes_no"]

_MOST_DOUBTS = 10


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked at the end beside each fact's own prompt. What is expensive is off by default.

    Attributes:
        probes: Kinds to ask, of `paraphrase`, `question` (the fact's `question`), `reversed` (the subject from the
            target), `choice` (several answers to choose from), `neighborhood`, `portability`, `yes_no`; where a fact
            does not give what a kind needs, it is not asked.
        num_choices: Answers to choose from, drawn from the targets of the same relation.
        doubt_turns: How often the model is asked whether it is sure, 0 to 10; each costs one dialogue turn per fact.
        doubt_facts: How many of the kept facts are doubted, chosen by the data's seed.
        retention: Whether unrelated text and known facts are measured.
        texts: A UTF-8 text file whose passages, separated by empty lines, are the unrelated text; 16 that come with the
            package where None.
        min_known_facts: Where fewer facts that the base model knows stayed untrained, built-in ones are asked too.

    Raises:
        InputError: If a setting is out of its range.
    """

    probes: list[ProbeKind] = field(
        default_factory=lambda: ["paraphrase", "question", "reversed", "neighborhood", "portability", "yes_no"]
    )
    num_choices: int = 4
    doubt_turns: int = 0
    doubt_facts: int = 64
    retention: bool = True
    texts: str | None = None
    min_known_facts: int = 16

    def __post_init__(self) -> None:
        require_instances("evaluation.probes", self.probes, str, "'paraphrase'")
        if unknown := sorted(set(self.probes) - set(get_args(ProbeKind))):
            raise InputError(
                f"`evaluation.probes` has {', '.join(unknown)}; known are {', '.join(get_args(ProbeKind))}"
            )
        for name, least, most in (
            ("num_choices", 2, None),
            ("doubt_turns", 0, _MOST_DOUBTS),
            ("doubt_facts", 1, None),
            ("min_known_facts", 0, None),
        ):
            value = getattr(self, name)
            if most is None:
                require_whole_number(f"evaluation.{name}", value, least)
            elif not least <= value <= most:
                raise InputError(f"`evaluation.{name}` must be from {least} to {most}, got {value}")
