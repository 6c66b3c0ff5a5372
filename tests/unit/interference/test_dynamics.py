import itertools
import math

import pytest
import torch
from lit_semantic_peft.interference import final_state, first_learned, forgetting_events, stability


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_against_plain_loops(epochs):
    history = torch.rand(epochs, 50, generator=torch.Generator().manual_seed(epochs)) < 0.4
    for fact in range(50):
        course = history[:, fact].tolist()
        assert first_learned(history)[fact] == (course.index(True) if True in course else -1)
        forgotten = sum(before and not after for before, after in itertools.pairwise(course))
        assert forgetting_events(history)[fact] == forgotten
        assert final_state(history)[fact] == course[-1]
        since = course[course.index(True) :] if True in course else []
        expected = sum(since) / len(since) if since else math.nan
        assert float(stability(history)[fact]) == pytest.approx(expected, nan_ok=True)


def test_types_and_no_epochs():
    history = torch.zeros(0, 3, dtype=torch.bool)
    assert first_learned(history).tolist() == [-1, -1, -1]
    assert forgetting_events(history).tolist() == [0, 0, 0]
    assert final_state(history).tolist() == [False, False, False]
    assert stability(history).isnan().all()
    assert first_learned(history).dtype == forgetting_events(history).dtype == torch.int64
    assert final_state(history).dtype == torch.bool


def test_a_history_that_is_not_bool_is_refused():
    for function in (first_learned, forgetting_events, final_state, stability):
        with pytest.raises(ValueError, match="bool"):
            function(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="epochs"):
            function(torch.zeros(3, dtype=torch.bool))
