"""Configurations and options that would be taken for something else than they say, or never be read to their end."""

import os
import sys
from pathlib import Path

import pytest

from fixtures.bad_inputs import BadInput, Place


def file(name: str, text: str, *said: str, command: str = "fit") -> BadInput:
    """A configuration file with this text."""
    return BadInput(name, f"{command} --config=bad.yaml", ["bad.yaml", *said], {"bad.yaml": text})


def option(name: str, words: str, *said: str, command: str = "fit") -> BadInput:
    """One option, whatever is in it."""
    return BadInput(name, [command, words], said)


def bomb() -> str:
    """Seven lists, each of nine times the one before."""
    lists = ["&a [x,x,x,x,x,x,x,x,x]"]
    lists += [f"&{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdef", "bcdefg", strict=True)]
    return f"data: {{facts: [{', '.join(lists)}]}}"


def own_module(text: str):
    """A module of the user's beside the configuration."""

    def make(place: Place) -> None:
        Path("own_kind.py").write_text(text, encoding="utf-8")
        place.monkeypatch.syspath_prepend(str(Path.cwd()))
        place.monkeypatch.delitem(sys.modules, "own_kind", raising=False)
        place.monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be found as left behind

    return make


def home_with_a_run(place: Place) -> None:
    Path("home/run").mkdir(parents=True)
    Path("home/run/manifest.json").write_text("{}", encoding="utf-8")
    place.monkeypatch.setenv("HOME", str(Path("home").absolute()))


def pipe(name: str):
    return lambda place: os.mkfifo(name)


CALLBACK = "from lightning.pytorch import Callback\nclass Own(Callback):\n    def __init__(self):\n        {}['x']\n"
NO_FACTS = {"a.yaml": "data: {facts: null}"}
FILES = [
    *(
        file(f"a section of {what}", f"{section}: {value}", f"`{section}` is a section", f"got {got}")
        for what, section, value, got in (
            ("nothing", "data", "", "nothing"),
            ("nothing for the trainer", "trainer", "null", "nothing"),
            ("a list", "data", "[1]", "[1]"),
            ("a number", "model", "5", "5"),
            ("a switch", "interference", "true", "True"),
        )
    ),
    file("a section within one", "data: {encoding: null}", "`data.encoding` is a section", "leave it out"),
    file("a base model that is a list", "model: {base_model: [a]}", "`model.base_model` is a section"),
    file("a section twice", "data: {seed: 1}\ndata: {seed: 2}", "line 2: `data` stands in line 1 as well"),
    file("a key twice", "data:\n  seed: 1\n  seed: 2\n", "line 3: `seed` stands in line 2 as well"),
    file("a key twice in JSON", '{"data": {"seed": 1, "seed": 2}}', "line 1: `seed` stands twice"),
    file("a value that contains itself", "data: &a {facts: *a}", "line 1: a value contains itself"),
    file("a list that contains itself", "data: {prompts: &a [*a]}", "line 1: a value contains itself"),
    file("a value without a bottom", f"data: {{facts: {'[' * 400}{']' * 400}}}", "nested deeper than 60 levels"),
    file("settings without a bottom", f"data: {'{a: ' * 80}1{'}' * 80}", "nested deeper than 60 levels"),
    file("aliases that unfold", bomb(), "aliases unfold to", "at most 1,000,000"),
    file("half a character", 'data: {facts: "a\\uD800b"}', "line 1", "half a character"),
    file(
        "no name of a class", "model: {peft_config: {class_path: null}}", "`model.peft_config.class_path`", "got None"
    ),
    file(
        "a list as name of a class in a list",
        "data: {selection: {filters: [{class_path: [a]}]}}",
        "`data.selection.filters[0].class_path`: expected the name of a class, got ['a']",
    ),
    file(
        "settings of a class as a list",
        "model: {peft_config: {class_path: peft.LoraConfig, init_args: [8]}}",
        "`model.peft_config.init_args`: expected settings of peft.LoraConfig by their names, got [8]",
    ),
    file(
        "a setting beside its class",
        "model: {peft_config: {class_path: peft.LoraConfig, r: 8}}",
        "`r` stands beside `class_path`; put it below `init_args`",
    ),
]
OPTIONS = [
    option("a section of nothing as an option", "--data=null", "`data` is a section"),
    option("a section of a list as an option", "--trainer=[1]", "`trainer` is a section"),
    option("a key twice as an option", "--data.forms={num_per_fact: 1, num_per_fact: 2}", "`--data.forms`", "twice"),
    option("a list in itself as an option", "--data.prompts=[&a [*a]]", "`--data.prompts`", "contains itself"),
    option("a key twice in a text", "--config={data: {seed: 1, seed: 2}}", "`--config`, line 1: `seed` stands twice"),
    BadInput("no facts", "fit --config=a.yaml", ["`facts`: expected the name of a set", "got None"], NO_FACTS),
    option("no prompts", "--data.prompts=[]", "`data.prompts` is empty", command="predict"),
    option("a large seed", "--data.seed=99999999999999999999", "`seed`", "from 0 to 4294967295"),
    option("a negative seed of samples", "--interference.seed=-1", "`seed` must be a whole number from 0", "-1"),
    option(
        "a prompt in place of a list", "--data.prompts=The sea is", "expected a list, got 'The sea is'. Write it as"
    ),
    option("words as steps", "--trainer.max_steps=many", "`trainer.max_steps`: expected a whole number, got 'many'"),
    option("a filter in place of a list", "--data.selection.filters=KnownFilter", "Write it as in `[KnownFilter]`"),
    option("a process for each fact", "--trainer.devices=9999", "`trainer.devices`: expected at most", "got 9999"),
    option("no room for a fact", "--data.encoding.max_length=0", "`encoding.max_length` must be at least 2"),
    option("a split of a file", "--data.dataset_split=tests", "'tests'", "facts.jsonl has no splits"),
    option("no output", "--output= ", "`output`: expected a folder, got an empty text", command="score"),
    option("an output with a NUL", "--output=a\0b", "holds a NUL character", command="score"),
    option("an abstract method", "--model.peft_config=peft.PeftConfig", "PeftConfig is no method", "LoraConfig"),
    option("sparse gradients", "--model.optimizer=torch.optim.SparseAdam", "SparseAdam takes sparse gradients"),
    *(
        option(f"a run folder {what}", f"--trainer.default_root_dir={name}", "expected a folder on this machine")
        for what, name in (
            ("elsewhere", "s3://bucket/run"),
            ("in memory", "memory://run"),
            ("with a NUL", "a\0b"),
            ("that is no text", "a\udcff"),
            ("of nobody", "~nobody-of-this-name/run"),
            ("without a name", ""),
        )
    ),
    BadInput(
        "a class that fails",
        ["fit", "--trainer.callbacks=[{class_path: own_kind.Own}]"],
        ["own_kind.Own cannot be made: KeyError: 'x'"],
        make=own_module(CALLBACK),
    ),
    BadInput(
        "a class that lacks a setting",
        ["fit", "--model.peft_config={class_path: peft.LoraConfig, dict_kwargs: {rang: 2}}"],
        ["peft.LoraConfig cannot be made", "unexpected keyword argument 'rang'"],
    ),
    BadInput(
        "a module that ends the program",
        "fit --data.selection.weighting=own_kind.Own",
        ["ends the program", "SystemExit(3)"],
        make=own_module("raise SystemExit(3)\n"),
    ),
    BadInput(
        "a run below the home",
        "fit --trainer.default_root_dir=~/run",
        ["The run folder", "home/run exists already"],
        make=home_with_a_run,
    ),
    BadInput(
        "a pipe as a configuration",
        "fit --config=pipe.yaml",
        ["pipe.yaml is no file but a pipe or a device"],
        make=pipe("pipe.yaml"),
    ),
    *(
        BadInput(f"an empty argument of {command}", [command, *words], ["argument", "is empty", "variable"])
        for command, words in (
            ("export", ["", "out"]),
            ("compare", ["runs/a", "runs/b", "--output", ""]),
            ("inspect", ["adapter", "--bank", ""]),
            ("augment", ["facts.jsonl", "out.jsonl", "--model", ""]),
        )
    ),
]


@pytest.mark.parametrize("case", FILES, ids=str)
def test_configurations(case, refused):
    message = refused(case)
    assert len(message.splitlines()) <= 8


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options(case, refused):
    message = refused(case)
    assert len(message.splitlines()) <= 8
