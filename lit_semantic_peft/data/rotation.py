"""A seeded choice that rotates: some of many rows, others the next time."""

from collections.abc import Sequence

import numpy as np


def rotating_choice(rows: Sequence[int], size: int, number: int, seed: int) -> list[int]:
    """Some of the rows. Within a round of ⌊n / `size`⌋ numbers no row comes twice; each round shuffles anew.

    Args:
        rows: What to choose from, at least one.
        size: How many, ≥ 1; all of them where there are fewer.
        number: Number of the choice, from 0.
        seed: Of the shuffles.

    Returns:
        The chosen rows.

    Example:
        >>> sorted(rotating_choice([3, 5, 8, 9], 2, 0, seed=0) + rotating_choice([3, 5, 8, 9], 2, 1, seed=0))
        [3, 5, 8, 9]
    """
    size = min(size, len(rows))
    turn, place = divmod(number, len(rows) // size)
    order: list[int] = np.random.default_rng((seed, turn)).permutation(np.asarray(rows)).tolist()
    return order[place * size : (place + 1) * size]
