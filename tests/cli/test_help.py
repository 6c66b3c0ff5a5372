"""Help says what the parsers know, on two screens, and nothing of Lightning's that is otherwise here."""

import re
import shutil
import sys
from importlib.metadata import version

import peft
import pytest
import torch
import yaml
from lightning.pytorch import loggers
from lit_semantic_peft import callbacks, facts, semantics, training
from lit_semantic_peft.__main__ import _LIGHTNING_COMMANDS, main
from lit_semantic_peft.cli import full_help, options
from lit_semantic_peft.cli.full_help import show_full_help
from lit_semantic_peft.cli.help import _OF_COMMAND, described, help_text

RENEW = "python -m lit_semantic_peft.cli.options writes the file of options anew"


@pytest.fixture(scope="module", autouse=True)
def _own_arguments():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-semantic-peft"])
        yield


@pytest.fixture(scope="module")
def content(_own_arguments):
    return options.content()


def test_the_file_of_options_is_what_the_parsers_say(content):
    known = options.KnownOptions()
    written = {"lightning": version("lightning"), "defaults": known.defaults, "commands": known._content["commands"]}
    ours = [
        {**one, "defaults": {key: value for key, value in one["defaults"].items() if not key.startswith("trainer.")}}
        for one in (written, content)
    ]
    assert ours[0] == ours[1], RENEW
    if known._content["lightning"] == version("lightning"):
        assert written == content, RENEW


@pytest.mark.parametrize("command", options.COMMANDS)
def test_help_describes_options_that_there_are(content, command):
    known = {*content["defaults"], *content["commands"][command], "config", "print_config", "help_all"}
    assert described(command) <= known | {"model.base_model"}
    text = help_text(command, "does it")
    assert text.startswith(f"usage: lit-semantic-peft {command} ")
    assert len(text.splitlines()) <= 100
    assert max(map(len, text.splitlines())) <= 110


def test_no_key_of_ours_is_missing(content):
    text = help_text("fit", "")
    of_predict = {"data.prompts", "data.max_new_tokens"}
    ours = {key for key in content["defaults"] if not key.startswith("trainer.")} - of_predict
    assert [key for key in sorted(ours) if not re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text)] == []
    assert "--data.batches.micro_batch_size N" in text
    assert re.search(r"facts per forward pass \(16\)$", text, re.MULTILINE)


def test_every_class_that_help_names_exists():
    kinds = {
        "data.selection.distance": semantics.Distance,
        "data.selection.filters": semantics.FactFilter,
        "data.selection.weighting": semantics.Weighting,
    }
    homes = (semantics, training, facts.forms, callbacks, peft, torch.optim, loggers)
    for groups in _OF_COMMAND.values():
        for key, (_, said) in ((key, line) for group in groups for key, line in group.lines.items()):
            if key.startswith(("data.selection", "data.forms.sources", "model.peft", "model.optim", "model.retain")):
                names = re.findall(r"\b[A-Z][A-Za-z]\w+", said)
                assert names
                for name in names:
                    assert any(hasattr(home, name) for home in homes), name
                    if kind := kinds.get(key):
                        assert issubclass(getattr(semantics, name), kind), name


def test_all_help_contradicts_no_default(capsys):
    assert main(["fit", "--help_all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--trainer.inference_mode" in text
    assert "Default: `" not in text
    assert "max_epochs = 1000" not in text
    assert "Seed of everything that is random" in text
    assert "TensorBoardLogger" not in text.partition("--trainer.logger LOGGER")[2].partition("(type")[0]


def test_print_config_shows_what_differs(capsys):
    shown = []
    for flag in ("--print_config", "--print_config=full"):
        with pytest.raises(SystemExit):
            main(["fit", "--data.num_facts=7", "--data.seed=0", flag])
        shown.append(yaml.safe_load(capsys.readouterr().out))
    assert shown[0] == {"data": {"num_facts": 7}}
    assert shown[1]["data"]["num_facts"] == 7
    assert shown[1]["data"]["seed"] == 0
    assert shown[1]["trainer"]["inference_mode"] is True


def test_main_help_names_the_commands_that_have_help():
    assert set(_LIGHTNING_COMMANDS) == set(options.COMMANDS) == set(_OF_COMMAND)


def test_all_help_is_kept_until_what_it_follows_from_changes(monkeypatch, capsys):
    asked = []

    def show():
        asked.append(shutil.get_terminal_size().columns)
        print(f"help {len(asked)}")
        raise SystemExit(0)

    for columns, said in ((80, 1), (80, 1), (100, 2), (80, 1)):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_full_help("fit", show)
        assert capsys.readouterr().out == f"help {said}\n"
    monkeypatch.setattr(full_help, "version", lambda name: "0")
    show_full_help("fit", show)
    show_full_help("score", show)
    assert asked == [80, 100, 80, 80]


def test_help_that_fails_is_not_kept(capsys):
    def show():
        print("half of it")
        raise SystemExit(2)

    for _ in range(2):
        with pytest.raises(SystemExit):
            show_full_help("fit", show)
        assert capsys.readouterr().out == "half of it\n"
