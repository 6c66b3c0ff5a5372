"""Which pairs of facts `score` shows as conflicts."""

import numpy as np
from lit_semantic_peft.cli.conflicts import worst_pairs


def test_pairs_that_help_each_other_are_no_conflicts():
    cosine = np.array([[1.0, -0.2, 0.1], [-0.2, 1.0, -0.5], [0.1, -0.5, 1.0]])
    assert worst_pairs(cosine, [4, 7, 9]) == [(7, 9, -0.5), (4, 7, -0.2)]
    assert worst_pairs(np.full((3, 3), np.nan), [4, 7, 9]) == []
    assert len(worst_pairs(-np.ones((6, 6)), range(6))) == 5
