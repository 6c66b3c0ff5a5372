"""The answers of `predict` on the screen and in the file, and in a conversation."""

import json
from types import SimpleNamespace

import pytest
from lit_semantic_peft.callbacks import AnswerWriter, Conversation, answer_writer, conversation
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Question
from lit_semantic_peft.training import SemanticPeftModule


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """Writes the answers to questions; what was shown, and the rows of the file."""

    def write(questions, answers, base):
        monkeypatch.setattr(answer_writer, "base_answers", lambda trainer, module, asked: base)
        trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path), progress_bar_callback=None)
        writer, module = AnswerWriter(), SemanticPeftModule.__new__(SemanticPeftModule)
        writer.on_predict_batch_end(trainer, module, answers, questions, 0)
        writer.on_predict_end(trainer, module)
        lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return capsys.readouterr().out, [json.loads(line) for line in lines]

    return write


def test_text_that_looks_like_markup_is_shown_as_it_is(written):
    shown, (row,) = written([Question(0, -1, "prompt", "[/INST] Say", (), (1,), None, 4)], [":cat: [bold]"], ["[x]"])
    assert "[/INST] Say" in shown
    assert ":cat: [bold]" in shown
    assert "[x]" in shown
    assert "Right" not in shown
    assert (row["prompt"], row["answer"], row["base_answer"]) == ("[/INST] Say", ":cat: [bold]", "[x]")
    assert "right" not in row


def test_facts_are_judged_beside_the_base_model(written):
    questions = [Question(row, row, "fact", f"p{row}", ("Lund", "lund city"), (1,), None, 4) for row in range(3)]
    shown, rows = written(questions, ["Lund", "Lund City.", "Rome"], ["Rome", "Lund", "Rome"])
    assert "Right: 2 of 3; base model: 1 of 3" in shown
    assert "✓ Lund City." in shown
    assert "✗ Rome" in shown
    assert [(row["right"], row["base_right"]) for row in rows] == [(True, False), (True, True), (False, False)]


def test_without_a_base_model_to_compare_with_the_answers_stand_alone(written):
    shown, (row,) = written([Question(0, 0, "fact", "p", ("Lund",), (1,), None, 4)], ["Lund"], None)
    assert "Right: 1 of 1" in shown
    assert "base model" not in shown
    assert (row["right"], row["base_answer"], row["base_right"]) == (True, None, None)


@pytest.fixture
def talk(monkeypatch, capsys):
    """Types lines into a conversation; what each side was asked, and what was shown."""

    def run(lines, template):
        typed, asked, base = iter(lines), [], []

        def next_line(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        def encode(prompt, answer, history):
            return SimpleNamespace(prompt_ids=(*history, prompt))

        def encode_prompt(prompt):
            if prompt == "long":
                raise InputError("too long.")
            return (prompt,)

        def answer(questions, batch):
            asked.append(questions[0].prompt_ids)
            return [f"taught {len(asked)}"]

        def without(trainer, module, questions):
            base.append(questions[0].prompt_ids)
            return [f"base {len(base)}"]

        module = SemanticPeftModule.__new__(SemanticPeftModule)
        encoder = SimpleNamespace(encode=encode, encode_prompt=encode_prompt)
        data = SimpleNamespace(encoder=encoder, encoding=SimpleNamespace(template=template), max_new_tokens=3)
        monkeypatch.setattr(SemanticPeftModule, "data", data)
        monkeypatch.setattr(SemanticPeftModule, "predict_step", lambda self, questions, batch: answer(questions, batch))
        monkeypatch.setattr(conversation, "base_answers", without)
        monkeypatch.setattr("builtins.input", next_line)
        Conversation().on_predict_start(None, module)
        return asked, base, capsys.readouterr().out

    return run


def test_both_models_answer_each_line(talk):
    asked, base, shown = talk(["a", "b", "", "never"], "none")
    assert asked == base == [("a",), ("b",)]
    assert "taught: taught 2\nbase:   base 2\n" in shown


def test_in_a_chat_each_remembers_its_own_answers(talk):
    asked, base, _ = talk(["a", "b"], "chat")
    assert asked[1] == (("a", "taught 1"), "b")
    assert base[1] == (("a", "base 1"), "b")


def test_what_is_too_long_begins_anew(talk):
    asked, _, shown = talk(["long", "b"], "chat")
    assert asked == [("b",)]
    assert "too long. Starting anew." in shown
