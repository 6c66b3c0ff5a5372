"""One entry a score: whatever shows scores shows each of them, under its one name."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from lit_semantic_peft.evaluation import RETENTION, SCORES
from lit_semantic_peft.evaluation.questions import QuestionKind
from lit_semantic_peft.evaluation.scores import score_table
from lit_semantic_peft.evaluation.scores.definition import ScoreDefinition, Unit
from lit_semantic_peft.reports.tables import FACT_COLUMNS

ALL = (*SCORES, *RETENTION)
DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_names_are_unique_and_each_entry_is_complete():
    assert len({score.name for score in ALL}) == len({score.label for score in ALL}) == len(ALL)
    for score in ALL:
        assert score.description.endswith(".")
        assert score.caution.endswith(".")
        assert score.lowest < score.highest
        assert set(score.kinds) <= set(get_args(QuestionKind))
        assert score.unit in get_args(Unit)
        assert score.range_text == ("0 to 1" if score.is_share else "any" if score in RETENTION else "at least 0")


def test_each_side_of_each_score_is_a_column_and_says_whose_it_is():
    described = {column.name: column for column in FACT_COLUMNS}
    for score in SCORES:
        for name, whose in ((score.before, "Base model"), (score.after, "Trained model")):
            if name is not None:
                assert described[name].description == f"{score.description} {whose}, of this fact's questions."
                assert str(described[name].type) == ("bool" if score.is_flag else "double")
    of_scores = [name for score in SCORES for name in (score.before, score.after) if name]
    assert [column.name for column in FACT_COLUMNS if column.name in of_scores] == of_scores


def test_the_page_has_the_table_of_the_entries():
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    table = score_table()
    assert table in page, f"the table of docs/evaluation.md must be:\n{table}"
    assert table.count("\n") == len(ALL) + 1


@pytest.mark.parametrize(
    ("unit", "is_share", "columns"), [("share", True, ("new_before", "new_after")), ("nats", False, (None, "new"))]
)
def test_an_entry_says_its_columns_and_how_it_is_read(unit, is_share, columns):
    score = ScoreDefinition(
        name="new", label="a new score", description="New.", caution="Never.", kinds=("fact",), values=lambda _: [],
        unit=unit, has_sides=is_share,
    )  # fmt: skip
    assert (score.is_share, score.before, score.after) == (is_share, *columns)


def test_the_definitions_are_read_without_torch():
    code = "import sys\nfrom lit_semantic_peft.evaluation import SCORES\nprint(len(SCORES), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(SCORES)), "False"]
