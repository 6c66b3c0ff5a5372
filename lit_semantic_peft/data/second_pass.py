"""A second pass over the facts that resist: the last optimizer steps of a training."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_semantic_peft.data.rotation import rotating_choice


@dataclass(frozen=True)
class SecondPass:
    """The last optimizer steps of a training. Half of each teaches facts that resist, the rest repeats the others.

    Attributes:
        first_step: Number of its first optimizer step, ≥ 1.
        num_steps: How many it has, ≥ 1.
        rate: Share of the full learning rate at its first step, from where it falls linearly to 0.
        resisting: Indices of the facts that resist; empty until they are known.
        own_prompts: Those of them whose own prompt is not recalled: they are taught in it, the others in their forms.
    """

    first_step: int
    num_steps: int
    rate: float
    resisting: tuple[int, ...] = ()
    own_prompts: frozenset[int] = frozenset()

    def steps(self, rows: Sequence[int], size: int, seed: int) -> list[list[int]]:
        """The fact indices of each of its optimizer steps.

        Args:
            rows: The trained facts.
            size: Facts of a step. A step has fewer where there are not so many.
            seed: Of the choice.

        Example:
            >>> [sorted(step) for step in SecondPass(9, 2, 0.5, resisting=(3,)).steps(range(5), size=3, seed=0)]
            [[0, 2, 3], [1, 3, 4]]
        """
        others = [row for row in rows if row not in set(self.resisting)]
        num_taught = min(len(self.resisting), max(1, size // 2)) if others else size

        def step(number: int) -> list[int]:
            taught = rotating_choice(self.resisting, num_taught, number, seed) if self.resisting else []
            num_repeated = min(size - len(taught), len(others))
            return taught + (rotating_choice(others, num_repeated, number, seed) if num_repeated else [])

        return [step(number) for number in range(self.num_steps)]
