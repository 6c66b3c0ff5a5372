import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import EvaluationPlan


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"probes": ["locality"]}, r"`evaluation\.probes` has locality; known are paraphrase"),
        ({"num_choices": 1}, r"`evaluation\.num_choices` must be at least 2, got 1"),
        ({"doubt_turns": 11}, r"`evaluation\.doubt_turns` must be from 0 to 10, got 11"),
    ],
)
def test_a_setting_out_of_its_range_is_named(setting, message):
    with pytest.raises(InputError, match=message):
        EvaluationPlan(**setting)
