"""The gradient matrix as a value: what a file holds, and what a user gets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_semantic_peft.statistics import gram_cosine


@dataclass(frozen=True)
class InterferenceMatrix:
    """The Gram matrix of per-fact gradients.

    Attributes:
        gradient_dot: K_ij = ⟨g_i, g_j⟩, float32 `(k, k)`.
        fact_index: The `fact_index` of each row and column, int64 `(k,)`.
        epoch: Epoch in which the gradients were taken.
        global_step: Optimizer steps taken before.
        fact_id: Stable id of each row and column; empty where they are not known.
    """

    gradient_dot: NDArray[np.float32]
    fact_index: NDArray[np.int64]
    epoch: int | None = None
    global_step: int | None = None
    fact_id: tuple[str, ...] = ()

    def gradient_cosine(self) -> NDArray[np.float64]:
        """C_ij, float64 `(k, k)`, see `gram_cosine`: NaN where a gradient is zero or not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            cosine: NDArray[np.float64] = gram_cosine(self.gradient_dot.astype(np.float64), np)
        return cosine

    def to_pandas(self) -> Any:
        """The cosines as a data frame whose rows and columns carry the facts' ids, else their indices; needs pandas."""
        import pandas as pd

        names = list(self.fact_id) or self.fact_index.tolist()
        return pd.DataFrame(self.gradient_cosine(), index=names, columns=names)
