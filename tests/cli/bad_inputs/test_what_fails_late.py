"""Input that a library would take silently, wait for, or end in a traceback of its own."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lit_semantic_peft.__main__ import main

from fixtures.adapters import FIRST, one, settings, write_random_adapter
from fixtures.bad_inputs import GOOD, RUN, BadInput, Place
from fixtures.run_folder import write_run_folder

QUICK = "--data.evaluation.probes=[] --data.evaluation.retention=false --interference.num_facts=0"
BEGUN = ("runs",)
LOGS = (f"{RUN}/logs",)  # of the attempt to go on


def facts(name: str, text: str, *said: str) -> BadInput:
    """A file of JSON lines with this text."""
    return BadInput(name, "convert bad.jsonl out.jsonl", ["bad.jsonl, line 1", *said], {"bad.jsonl": text})


def record(**changed: object) -> str:
    return json.dumps({**GOOD, **changed})


def two_targets(_: Place) -> None:
    column = pa.array(["x"])
    pq.write_table(pa.Table.from_arrays([column, column, column], names=["prompt", "target", "target"]), "bad.parquet")


def far_date(_: Place) -> None:
    column = pa.array([2**60], pa.timestamp("us"))
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), column], names=["prompt", "target"]), "bad.parquet")


def pipe(name: str):
    def make(_: Place) -> None:
        Path(name).parent.mkdir(exist_ok=True)
        os.mkfifo(name)

    return make


def link(name: str):
    def make(_: Place) -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to("nowhere")

    return make


FACTS = [
    facts("a field twice", '{"prompt": "x", "target": "a", "target": "b"}', "names 'target' more than once"),
    facts("a field of a form twice", record(forms=[]).replace("[]", '[{"prompt": "a", "prompt": "b"}]'), "'prompt'"),
    facts("a list without a bottom", record(other=[]).replace("[]", "[" * 900 + "]" * 900), "nested too deeply"),
    facts("an object without a bottom", record(other=1).replace("1}", '{"a":' * 900 + "1" + "}" * 901), "too deeply"),
    facts("countless hops", record(portability=[{"prompt": "a", "target": "b", "hops": 10**30}]), "from 1 to 1,000"),
    BadInput(
        "a field twice in an array",
        "convert bad.json out.jsonl",
        ["bad.json, record 1", "names 'target' more than once"],
        {"bad.json": '[{"prompt": "x", "target": "a", "target": "b"}]'},
    ),
    BadInput(
        "a column twice in Parquet",
        "convert bad.parquet out.jsonl",
        ["bad.parquet", "`target` more than once"],
        make=two_targets,
    ),
    BadInput("a date beyond Python's", "convert bad.parquet out.jsonl", ["bad.parquet, row 1"], make=far_date),
    BadInput("a pipe among facts", "convert set out.jsonl", ["set/b.jsonl", "a pipe"], make=pipe("set/b.jsonl")),
    BadInput("a broken link", "convert set out.jsonl", ["set/b.jsonl", "a broken link"], make=link("set/b.jsonl")),
    BadInput("an output that is a link", "convert facts.jsonl a.jsonl", ["a.jsonl exists"], make=link("a.jsonl")),
    BadInput("a built-in set and a file", "convert world facts.jsonl out.jsonl", ["'world' is read alone", "OUT"]),
    BadInput("a split of a built-in set", "convert world out.jsonl --dataset_split test", ["world has no splits"]),
    BadInput("a split of a file", "convert facts.jsonl out.jsonl --dataset_split test", ["facts.jsonl has no splits"]),
    BadInput("an output with a NUL", ["convert", "facts.jsonl", "a\0.jsonl"], ["NUL character"]),
]


def templates(name: str, text: str, *said: str) -> BadInput:
    call = f"fit {QUICK} --data.forms.sources+=Templates --data.forms.sources.file=t.yaml"
    return BadInput(name, call, ["t.yaml", *said], {"t.yaml": text})


TEXTS = [
    templates("a relation twice", "capital: ['{subject} has {target}']\ncapital: []", "line 2", "in line 1 as well"),
    templates("templates in themselves", "capital: &a [*a]", "contains itself"),
    templates("templates without a bottom", f"capital: {'[' * 80}{']' * 80}", "nested deeper"),
    BadInput(
        "a pipe of templates",
        f"fit {QUICK} --data.forms.sources+=Templates --data.forms.sources.file=pipe",
        ["`templates`: pipe is a pipe"],
        make=pipe("pipe"),
    ),
    BadInput("a pipe of texts", f"fit {QUICK} --data.evaluation.texts=pipe", ["pipe is a pipe"], make=pipe("pipe")),
    BadInput(
        "a folder of texts",
        ["fit", "--model.retain=[{class_path: lit_semantic_peft.training.Text, init_args: {file: .}}]"],
        ["`Text.file`", "no file but a folder"],
    ),
]


def peft(name: str, *said: str, **changed: object) -> BadInput:
    arguments = {"class_path": "peft.LoraConfig", "init_args": {"target_modules": ["q_proj"], **changed}}
    return BadInput(name, ["fit", f"--model.peft_config={json.dumps(arguments)}"], ["`peft_config`", *said])


NAMELESS = "names nothing in the base model"
ADAPTERS = [
    peft("dropout below 0", "`lora_dropout: -1.0`", "[0, 1)", lora_dropout=-1.0),
    peft("dropout of all", "`lora_dropout: 1.0`", "[0, 1)", lora_dropout=1.0),
    peft("a rank of no module", f"`rank_pattern`: 'k_prj' {NAMELESS}", rank_pattern={"k_prj": 4}),
    peft("an alpha of no module", f"`alpha_pattern`: 'k_prj' {NAMELESS}", alpha_pattern={"k_prj": 4}),
    peft("a head that is not there", f"`modules_to_save`: 'score' {NAMELESS}", modules_to_save=["score"]),
    peft(
        "a parameter that is not there", f"`target_parameters`: 'experts.w' {NAMELESS}", target_parameters=["experts.w"]
    ),
    peft("one layer too far", f"`layers_to_transform`: 99 {NAMELESS}", layers_to_transform=[0, 99]),
    BadInput(
        "no rank at the end",
        ["fit", "--model.peft_config={class_path: peft.AdaLoraConfig, init_args: {target_r: -1, total_step: 9}}"],
        ["`target_r: -1`", "leaves no rank"],
    ),
]


def trainer(name: str, options: str, *said: str, leaves: tuple[str, ...] = ()) -> BadInput:
    return BadInput(name, f"fit {QUICK} {options}", said, leaves=leaves)


def callback(name: str, *said: str, more: str = "", leaves: tuple[str, ...] = (), **arguments: object) -> BadInput:
    value = json.dumps([{"class_path": name, "init_args": arguments}])
    words = ["fit", *QUICK.split(), f"--trainer.callbacks={value}", *more.split()]
    return BadInput(name, words, [f"`trainer.callbacks`: {name}", *said], leaves=leaves)


STEPLESS = ("ended before its first optimizer step", "`trainer.max_steps`", "`score`")
TRAINERS = [
    *(
        trainer(f"{value} as devices", f"--trainer.devices={value}", "`trainer`", "`devices`")
        for value in ("many", "-1", "[5]")
    ),
    trainer("machines that cannot meet", "--trainer.num_nodes=3", "`trainer.num_nodes` is 3", "MASTER_ADDR"),
    trainer("no validation steps", "--trainer.val_check_interval=0", "`trainer.val_check_interval` must be above 0"),
    trainer("a late validation", "--trainer.val_check_interval=99", "`trainer`", "`val_check_interval` (99)"),
    trainer("every 0th epoch", "--trainer.check_val_every_n_epoch=0", "`trainer.check_val_every_n_epoch`", "1, got 0"),
    trainer("a log every -1 steps", "--trainer.log_every_n_steps=-1", "`trainer.log_every_n_steps`", "-1"),
    trainer("less than a batch", "--trainer.limit_train_batches=0.0001", "`trainer`", "`limit_train_batches`"),
    trainer("no steps", "--trainer.max_steps=0", *STEPLESS),
    trainer("no batches", "--trainer.limit_train_batches=0", *STEPLESS),
    trainer("no time", "--trainer.max_time=00:00:00:00", *STEPLESS),
    callback("EarlyStopping", "`nothing`", "val/nll", leaves=BEGUN, monitor="nothing"),
    callback("BatchSizeFinder", "batch_size"),
    callback("LearningRateFinder", "learning rate"),
    callback("BackboneFinetuning", "backbone"),
    callback("LearningRateMonitor", "no logger", more="--trainer.logger=false"),
    BadInput(
        "a callback twice",
        ["fit", "--trainer.callbacks=[{class_path: %s}, {class_path: %s}]" % (("StopWhenRecalled",) * 2)],
        ["`trainer`", "more than one", "StopWhenRecalled"],
    ),
]


def adapter(change=None):
    def make(place: Place) -> None:
        write_random_adapter(place.model, Path("adapter"))
        if change is not None:
            change(Path("adapter"))

    return make


def bank(place: Place) -> None:
    for number in range(6):
        write_random_adapter(place.model, Path("bank", str(number)), seed=number)
    shutil.copytree("bank/0", "adapter")
    one(lambda value: value * float("nan"))(Path("bank/2"))


def watch(name: str, text: str, *said: str) -> BadInput:
    return BadInput(name, "inspect adapter --watch=w.yaml", ["w.yaml", *said], {"w.yaml": text}, make=adapter())


def groups(groups: str, answers: str) -> str:
    prompts = ", ".join(f"{{prompt: '{word} {{group}}', answers: {answers}}}" for word in "ab")
    return f"must_not_diverge: [{{name: n, groups: {groups}, prompts: [{prompts}]}}]"


INSPECTED = [
    watch("a list of answers twice", "must_hold: []\nmust_hold: []", "line 2", "in line 1 as well"),
    watch("answers without a bottom", f"must_hold: {'[' * 80}{']' * 80}", "nested deeper"),
    watch("an answer of digits", f"must_hold: {'9' * 5000}", "no YAML", "digits"),
    watch("half a character", 'must_hold: [{prompt: "\\uD800", answer: a}]', "half a character"),
    watch("an unknown key", "must_hold: [{prompt: a, answer: b, alias: [c]}]", "`must_hold[0]`", "unknown `alias`"),
    watch("a group twice", groups("[x, x]", "[b, c]"), "`groups` must differ"),
    watch("an answer twice", groups("[x, y]", "[b, b]"), "two different `answers`"),
    BadInput(
        "a pipe to watch",
        "inspect adapter --watch=p",
        ["`watch`: p is a pipe"],
        make=lambda place: [adapter()(place), os.mkfifo("p")],
    ),
    BadInput("no number in a bank", "inspect adapter --weights_only --bank=bank", ["bank/2", "not finite"], make=bank),
    BadInput(
        "a list of types",
        "inspect adapter --weights_only",
        ["adapter_config.json", "`peft_type` must be one of", "['LORA']"],
        make=adapter(settings(peft_type=["LORA"])),
    ),
    BadInput(
        "weights without a number",
        "inspect adapter --weights_only",
        ["not finite", FIRST.removeprefix("base_model.model.").removesuffix(".lora_A.weight")],
        make=adapter(one(lambda value: value / 0)),
    ),
    BadInput("no adapter's name", ["predict", "--model.adapter=", "--data.prompts=[x]"], ["`adapter`", "empty text"]),
]


def run_with(name: str, content: bytes):
    def make(_: Place) -> None:
        for run in "ab":
            write_run_folder(Path("runs", run), 8)
        Path("runs/a", name).write_bytes(content)

    return make


FOLDERS = [
    *(
        BadInput(f"{call.split()[0]} of {name}", call, [f"runs/a/{name}", "UTF-8"], make=run_with(name, b"{\xff"))
        for call, name in (
            ("report runs/a", "summary.json"),
            ("report runs/a", "config.yaml"),
            ("compare runs/a runs/b", "summary.json"),
        )
    ),
    *(
        BadInput(f"{name} as a number", f"fit {QUICK}", [f"{name} must be a number", "'first'"], make=make)
        for name in ("RANK", "SLURM_PROCID")
        for make in [lambda place, name=name: place.monkeypatch.setenv(name, "first")]
    ),
    *(
        BadInput(
            f"{what} in a model", "fit --model.base_model=model", [f"model/{name} is a broken link, a pipe"], make=make
        )
        for what, name, change in (
            ("a pipe", "tokenizer.json", os.mkfifo),
            ("a broken link", "model.safetensors", lambda path: path.symlink_to("nowhere")),
        )
        for make in [lambda place, name=name, change=change: change(_gone(place, name))]
    ),
    BadInput(
        "the tokenizer of another model",
        "fit --model.base_model=model",
        ["the tokenizer in", "tokens, the model 20", "do not belong together"],
        make=lambda place: _set_vocabulary(place, 20),
    ),
]


def _gone(place: Place, name: str) -> Path:
    path = place.copied_model() / name
    path.unlink()
    return path


def _set_vocabulary(place: Place, size: int) -> None:
    path = place.copied_model() / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "vocab_size": size}), encoding="utf-8")


@pytest.mark.parametrize("case", [*FACTS, *TEXTS, *ADAPTERS, *TRAINERS, *INSPECTED, *FOLDERS], ids=str)
def test_traps(case, refused):
    refused(case)


def state(name: str, value: object):
    return lambda checkpoint: checkpoint.update({name: value})


def without(name: str):
    return lambda checkpoint: checkpoint.pop(name)


OWN = "lit_semantic_peft"
CHECKPOINTS = {
    "no list of tensors": (state("state_dict", [1]), "`state_dict` is of type list, not dict"),
    "texts as tensors": (state("state_dict", {"a": "x"}), "something else than tensors"),
    "a text as optimizer": (state("optimizer_states", ["x"]), "`optimizer_states` holds something else than states"),
    "a text as callbacks": (state("callbacks", "x"), "`callbacks` is of type str"),
    "no version": (state("pytorch-lightning_version", "new"), "is no version"),
    "another kind of origin": (state(OWN, []), f"`{OWN}` is of type list"),
    "no base model": (state(OWN, {}), "names no base model"),
    "a text as epoch": (state("epoch", "x"), "`epoch` is of type str"),
    "steps below 0": (state("global_step", -5), "below 0"),
    "no loops": (without("loops"), "lacks `loops`"),
    "no optimizer": (without("optimizer_states"), "lacks `optimizer_states`"),
    "a text as position": (state("KnowledgeDataModule", "x"), "cannot be restored"),
    "a text as loop": (lambda one: one["loops"].update(fit_loop="x"), "cannot be restored: AttributeError"),
    "no random numbers": (lambda one: one[OWN].pop("rng"), "cannot be restored: KeyError: 'rng'"),
    "no groups": (lambda one: one["optimizer_states"][0].pop("param_groups"), "cannot be restored: KeyError"),
}


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A run folder after one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "facts.jsonl"
    path.write_text("".join(f'{{"prompt": "The {one} is", "target": "Lund"}}\n' for one in "abc"), encoding="utf-8")
    call = ["fit", f"--model.base_model={tiny_model}", f"--data.facts={path}", "--recipe=plain", *QUICK.split()]
    trainer = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={folder / 'run'}"]
    assert main([*call, *trainer]) == 0
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_another_form(name, refused, trained):
    change, said = CHECKPOINTS[name]

    def make(_: Place) -> None:
        shutil.copytree(trained / "run", RUN)
        shutil.copy(trained / "facts.jsonl", "facts.jsonl")
        path = Path(RUN, "checkpoints", "last.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    refused(
        BadInput(
            name, f"fit {QUICK} --ckpt_path=last --trainer.max_epochs=2", ["checkpoint", said], make=make, leaves=LOGS
        )
    )
