"""The user's own passages as unrelated text."""

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import EvaluationPlan
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS

from fixtures.training import build_data


@pytest.fixture
def texts(tiny_model, facts_file):
    """The passages that are asked with some settings."""

    def asked(**settings):
        data = build_data(tiny_model, facts_file, evaluation=EvaluationPlan(min_known_facts=0, **settings))
        data.setup()
        return [one.accepted[0] for one in data.questions if one.kind == "text"]

    return asked


def test_passages_are_separated_by_empty_lines(texts, tmp_path):
    file = tmp_path / "passages.txt"
    file.write_text("It rained\n  all day.\n\n \nThe cat slept.\n", encoding="utf-8")
    assert texts(texts=str(file)) == ["It rained all day.", "The cat slept."]
    assert texts() == list(NEUTRAL_TEXTS)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, r"`data\.evaluation\.texts`: .* cannot be read"), (b" \n", "passages"), (b"a\n\xff", "line 2")],
)
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_scored(texts, tmp_path, content, said):
    file = tmp_path / "passages.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        texts(texts=str(file))
