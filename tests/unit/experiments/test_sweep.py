"""The sweep over model families and adapter types: that it finds what is wrong, goes on, and survives its worker."""

import re

import pytest
from experiments.sweep import checks, worker
from experiments.sweep.__main__ import main
from experiments.sweep.cells import EVERYWHERE, IN_DEPTH, SAMPLE_SIZE, all_cells
from experiments.sweep.families import family_names
from experiments.sweep.ledger import Cell, Ledger, Outcome
from experiments.sweep.methods import method_names
from experiments.sweep.table import page
from experiments.sweep.worker import check, outcomes_of

from fixtures import workers

LLAMA = Cell("llama", "LORA")


def test_the_cells_are_every_family_every_type_and_a_sample():
    cells = all_cells()
    assert len(cells) == len(set(cells))
    assert cells == all_cells(), "the sample is drawn by a seed"
    assert {Cell(family, method) for family in family_names() for method in EVERYWHERE} <= set(cells)
    assert {Cell(family, method) for family in IN_DEPTH for method in method_names()} <= set(cells)
    rest = [cell for cell in cells if cell.method not in EVERYWHERE and cell.family not in IN_DEPTH]
    assert len(rest) == SAMPLE_SIZE
    assert cells[0].method == "LORA"


@pytest.mark.parametrize("cell", [LLAMA, Cell("gpt2", "TRAINABLE_TOKENS"), Cell("roberta", "IA3")])
def test_what_is_right_passes(cell):
    found = check(cell)
    assert (found.status, found.detail) == ("pass", "")
    assert any("plain forward passes" in note for note in found.notes) == (cell.family == "roberta")


def test_what_is_refused_says_why():
    found = check(Cell("mamba", "ADAPTION_PROMPT"))
    assert found.status == "refused"
    assert "`peft_config`" in found.detail


def spoiled(of, change):
    """A function whose result is changed."""
    return lambda *given, **named: change(of(*given, **named))


def with_nothing_loaded(model):
    """The adapter as one that was never loaded."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    return model


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("fact_nll", lambda losses: 1.01 * losses, "losses: differ by"),
        ("gradient_matrix", lambda matrix: 1.01 * matrix, "gradient norms: differ by"),
        ("greedy_answers", lambda answers: [[(ids[0] + 1) % 50, *ids[1:]] for ids in answers], "not the likeliest one"),
        ("deepcopy", lambda copy: [{}, fresh(copy[1])] if isinstance(copy, tuple) else copy, "resumed "),
        ("load_adapter", with_nothing_loaded, "reloaded adapter: differ by"),
    ],
)
def test_what_is_wrong_is_found(name, change, said, monkeypatch):
    monkeypatch.setattr(checks, name, spoiled(getattr(checks, name), change))
    found = check(LLAMA)
    assert found.status == "wrong"
    assert said in found.detail


def fresh(of_optimizer):
    """The state of an optimizer that has done no step."""
    return {**of_optimizer, "state": {}}


def test_an_error_is_told_with_its_place(monkeypatch):
    monkeypatch.setattr(checks, "self_check", lambda *_, **__: 1 / 0)
    found = check(LLAMA)
    assert found.status == "error"
    assert re.fullmatch(r"test_sweep\.py:\d+: ZeroDivisionError: division by zero", found.detail)


def test_a_worker_that_dies_or_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(worker, "_serve", workers.serve)
    cells = [Cell(family, "LORA") for family in ("one", "dies", "two", "hangs", "three")]
    found = {one.family: one for one in outcomes_of(cells, limit=1.0)}
    assert [one.status for one in found.values()] == ["pass", "error", "pass", "error", "pass"]
    assert found["dies"].detail == "the process died"
    assert found["hangs"].detail == "took over 1 s"


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "sweep.jsonl")
    ledger.add(Outcome("llama", "LORA", "wrong", "losses: differ by 3"))
    ledger.add(Outcome("gpt2", "LORA", "pass", notes=("merge: no",)))
    ledger.add(Outcome("mamba", "IA3", "refused", "`peft_config`: no | such layer"))
    return ledger


def test_what_was_found_is_not_checked_again_unless_it_was_wrong(ledger):
    cells = [LLAMA, Cell("gpt2", "LORA"), Cell("opt", "LORA")]
    assert ledger.open_cells(cells, again=False) == [Cell("opt", "LORA")]
    assert ledger.open_cells(cells, again=True) == [LLAMA, Cell("opt", "LORA")]
    ledger.add(Outcome("llama", "LORA", "pass"))
    assert ledger.open_cells(cells, again=True) == [Cell("opt", "LORA")]


def test_the_page_shows_every_outcome(ledger):
    text = page(all_cells(), ledger.read())
    assert f"3 of {len(all_cells())} cells were checked: 1 pass, 1 refused, 1 wrong." in text
    assert "- losses: differ by 3 (1: llama × LORA)" in text
    assert "- `peft_config`: no \\| such layer (1: mamba × IA3)" in text
    assert "- merge: no (1: gpt2 × LORA)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| llama | WRONG |")]
    assert row.count("|") == len(EVERYWHERE) + 2


def test_the_command_goes_on_and_says_whether_all_is_well(ledger, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "experiments.sweep.__main__.outcomes_of",
        lambda cells, limit: (asked.append(cell) or Outcome(*cell, "pass") for cell in cells),
    )
    words = ["run", "--ledger", str(ledger.path)]
    assert main([*words, "--only", "llama×"]) == 1
    assert LLAMA not in asked
    assert main([*words, "--again"]) == 0
    assert LLAMA in asked
    assert main(words) == 0
    assert len(asked) == len(set(asked)) == len(all_cells()) - 2
    assert "'pass'" in capsys.readouterr().out
