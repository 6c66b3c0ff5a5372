"""What can be held still; of a source of retained text: which texts, at which positions, what its teacher reads."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from lit_semantic_peft.arguments import require_seed
from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.tokens import EncodedFact

if TYPE_CHECKING:
    from lit_semantic_peft.training.retain.context import RetainContext


@dataclass(frozen=True, slots=True)
class RetainedText:
    """Tokens at some of which the student's prediction is held to the teacher's.

    Attributes:
        student: What the student reads; the predictions of its target tokens are held.
        teacher_prompt_ids: What the teacher reads before the same target tokens; as the student where None.
    """

    student: EncodedFact
    teacher_prompt_ids: tuple[int, ...] | None = None

    @property
    def teacher(self) -> EncodedFact:
        """What the teacher reads."""
        if self.teacher_prompt_ids is None:
            return self.student
        return EncodedFact(self.teacher_prompt_ids, self.student.target_ids)


class HeldStill(ABC):
    """Something of the base model that a training leaves as it is. Its settings are attributes with plain data."""

    @property
    def kind(self) -> str:
        """Class name."""
        return type(self).__name__

    @property
    def name(self) -> str:
        """The class name in the form of a log key, such as `own_samples`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.kind).lower()

    @property
    def described(self) -> str:
        """Class and settings, such as `OwnSamples(batch_size=8, length=24)`."""
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in sorted(vars(self).items()))})"

    @property
    @abstractmethod
    def in_short(self) -> str:
        """Class and how strongly it holds, such as `KnownFacts (weight 2)`."""

    def require_at_least(self, least: int, *names: str) -> None:
        """Checks settings.

        Args:
            least: The smallest number allowed.
            names: Of the settings; None is allowed.

        Raises:
            InputError: For the first one that is below it.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"`{self.kind}.{name}` must be at least {least}, got {value}")

    def rows(self, prepared: PreparedFacts) -> list[int]:
        """Indices of the run's own facts that are retained, so that nothing else is measured on them.

        Args:
            prepared: The facts, and which are trained.
        """
        return []


class RetainSource(HeldStill):
    """A kind of text on which the adapter must predict what the base model predicts. Selected by `class_path`.

    It adds λ · (mean over the step's texts of the source's KL(teacher ‖ student), each text the mean over its held
    positions) to the loss, nats per token. Each source has a mean of its own, apart from the facts and from other
    sources.

    Args:
        weight: λ > 0.
        batch_size: Texts per optimizer step over all processes, ≥ 1; all of them where there are fewer.
        top_k: Of the teacher's distribution, the most likely tokens that are stored beside the mass of the rest. None:
            the whole distribution, computed anew in each step, which costs a forward pass.
        seed: Of everything that is drawn.
        every: The source has texts in every so-many-th optimizer step, ≥ 1, and λ counts so many times in it. Fewer
            passes for the same pull; the first is in step `every`, as a fresh adapter diverges from nothing.

    Raises:
        InputError: If a setting is out of its range.
    """

    drops_target = False
    """Whether the target token is left out of both distributions before they are compared."""

    def __init__(
        self, weight: float = 1.0, batch_size: int = 16, top_k: int | None = 512, seed: int = 0, every: int = 1
    ) -> None:
        self.weight = weight
        self.batch_size = batch_size
        self.top_k = top_k
        self.seed = seed
        self.every = every
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(
                f"`{self.kind}.weight` must be a finite number above 0, got {weight}. To retain nothing leave it out."
            )
        require_seed(seed, f"{self.kind}.seed")
        self.require_at_least(1, "batch_size", "top_k", "every")

    @property
    @override
    def in_short(self) -> str:
        return f"{self.kind} (weight {self.weight:g})"

    def require_temperature(self) -> None:
        """Checks the setting `temperature`.

        Raises:
            InputError: If it is not a finite number above 0.
        """
        temperature: float = vars(self)["temperature"]
        if not 0 < temperature < math.inf:
            raise InputError(f"`{self.kind}.temperature` must be a finite number above 0, got {temperature}")

    @abstractmethod
    def texts(self, context: "RetainContext") -> Sequence[RetainedText]:
        """All texts of the source, the same in each call; a source without any is left out.

        Runs on the first rank alone.

        Args:
            context: The base model, the tokenizer, the facts, the cache.

        Raises:
            InputError: If what the user gave has none.
        """
