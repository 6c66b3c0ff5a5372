"""What reaches a terminal: no control characters from facts, names and errors, and no endless messages."""

import io
import logging

import pytest
from lit_semantic_peft.cli.run import _say_how_a_rank_ended
from lit_semantic_peft.terminal import LONGEST_MESSAGE, TextArgumentParser, TextConsole, TextFormatter, message, visible
from rich.table import Table
from rich.text import Text

HOSTILE = "\x1b[2J\x07a\rb\x9b31m\u202egnp.exe"
SHOWN = r"\x1b[2J\x07a\rb\x9b31m\u202egnp.exe"


def test_control_characters_are_escapes_and_text_stays():
    assert visible(HOSTILE) == SHOWN
    assert visible("Żubrówka\t東京\nالرياض") == "Żubrówka\t東京\nالرياض"


def test_tables_lines_and_titles_are_shown_as_they_are():
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.caption = HOSTILE
    stream = io.StringIO()
    console = TextConsole(file=stream, width=200)
    console.print(table)
    console.print(f"[bold]{HOSTILE}", soft_wrap=True)
    console.print(Text(f"  {HOSTILE[:4]}", style="yellow"), Text(HOSTILE[-8:]))
    shown = stream.getvalue()
    assert shown.count(SHOWN) == 5
    assert rf"  {SHOWN[:7]} \u202egnp.exe" in shown
    assert visible(shown) == shown
    assert "[bold]" in shown


def test_log_lines_are_shown_as_they_are():
    record = logging.LogRecord("x", logging.INFO, "", 0, "name %s", (HOSTILE,), None)
    assert TextFormatter("%(message)s").format(record) == f"name {SHOWN}"


def test_a_long_message_loses_its_middle():
    said = message("a" + "x" * 100_000 + "z")
    assert len(said) <= LONGEST_MESSAGE
    assert said.startswith("a")
    assert said.endswith("z")
    assert "characters are left out" in said
    assert message("x" * LONGEST_MESSAGE) == "x" * LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "was killed by SIGKILL"), (-11, "was killed by SIGSEGV"), (3, "ended with exit status 3")]
)
def test_a_rank_that_ended_is_named_with_how(code, said, monkeypatch):
    """Through Lightning's own observer of its child processes, so that another wording of its message shows."""
    from types import SimpleNamespace

    from lightning.fabric.strategies.launchers import subprocess_script

    log = subprocess_script._logger
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(log, "filters", [_say_how_a_rank_ended])
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(handler)
    alive = SimpleNamespace(poll=lambda: None, returncode=None, pid=11)
    ended = SimpleNamespace(poll=lambda: None, returncode=code, pid=12)
    observer = subprocess_script._ChildProcessObserver(main_pid=10, child_processes=[alive, ended])
    monkeypatch.setattr(observer, "_terminate_all", lambda: None)
    try:
        assert observer._run()
    finally:
        log.removeHandler(handler)
    assert lines == [f"Rank 2 (process 12) {said}; the other processes are ended too."]


def test_what_was_typed_is_shown_as_it_is_by_help_and_errors(capsys):
    parser = TextArgumentParser(prog="\x1b[2Jprogram")
    for arguments in (["--help"], ["--\x1b]0;title\x07"]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
    shown = capsys.readouterr()
    assert r"usage: \x1b[2Jprogram" in shown.out
    assert r"unrecognized arguments: --\x1b]0;title\x07" in shown.err
    assert not {"\x1b", "\x07"} & {*shown.out, *shown.err}
