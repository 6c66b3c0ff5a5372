"""The answers of `predict` on the screen and in the file."""

import json
from types import SimpleNamespace

from lit_semantic_peft.callbacks import AnswerWriter
from lit_semantic_peft.evaluation import Question


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path, capsys):
    question = Question(0, -1, "prompt", "[/INST] Say", (), (1,), None, 4)
    writer = AnswerWriter()
    writer.on_predict_batch_end(None, None, [":cat: [bold]"], [question], 0)
    writer.on_predict_end(
        SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path), progress_bar_callback=None), None
    )
    shown = capsys.readouterr().out
    assert "[/INST] Say" in shown
    assert ":cat: [bold]" in shown
    row = json.loads((tmp_path / "predictions.jsonl").read_text(encoding="utf-8"))
    assert row["prompt"] == "[/INST] Say"
    assert row["answer"] == ":cat: [bold]"
