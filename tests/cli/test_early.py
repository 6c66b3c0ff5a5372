"""What is refused before anything heavy is imported."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.cli import early
from lit_semantic_peft.cli.early import refuse_early, refuse_no_adapter
from lit_semantic_peft.cli.options import KnownOptions
from lit_semantic_peft.errors import InputError

HEAVY = ("torch", "transformers", "lightning", "pyarrow", "numpy")
CALLS = {
    "help": (["--help"], 0, "usage: lit-semantic-peft"),
    "help of a command": (["fit", "--config", "nowhere.yaml", "--help"], 0, "--data.facts FACTS"),
    "no such option": (["fit", "--data.num_fact=3"], 2, "no setting `data.num_fact`.\nDid you mean `data.num_facts`?"),
    "no such key": (
        ["test", "--config", "typo.yaml"],
        2,
        "typo.yaml: there is no setting `model.base_model.dtpe`.\nDid",
    ),
    "a moved option": (["fit", "--data.template=chat"], 2, "`data.template` is now `data.encoding.template`"),
    "a run that a configuration names": (["fit", "--config", "a.yaml"], 2, "The run folder runs/a exists already."),
    "no such command": (["fitt"], 2, "did you mean 'fit'?"),
    "no such configuration": (["fit", "--config", "nowhere.yaml"], 2, "`--config`: nowhere.yaml does not exist in "),
    "no such facts": (["fit", "--data.facts", "fact.jsonl"], 2, "got 'fact.jsonl', which does not exist. Did you mean"),
    "no such facts in a file": (["score", "--config={data: {facts: fact.jsonl}}"], 2, "which does not exist."),
    "facts that cannot be used": (["fit", "--data.facts=bad.csv"], 2, "bad.csv, line 2: field `target`: expected text"),
    "no such adapter": (["predict", "--model.adapter", "nowhere"], 2, "`adapter` 'nowhere' holds no adapter"),
    "no such checkpoint": (
        ["test", "--ckpt_path=nowhere.ckpt"],
        2,
        "'nowhere.ckpt' is no checkpoint file.",
    ),
    "an export of nothing": (["export", "nowhere", "out"], 2, "'nowhere' holds no adapter"),
    "an audit of nothing": (
        ["inspect", "nowhere"],
        2,
        "(adapter_config.json is missing), and is no run with one",
    ),
    "a report of nothing": (["report", "nowhere"], 2, "`nowhere`: expected a run folder, but there is none"),
    "a comparison with nothing": (["compare", "runs/a", "nowhere"], 2, "`nowhere`: expected a run folder"),
    "a run that exists": (
        ["fit", "--trainer.default_root_dir=runs/a", "--data.facts", "facts.jsonl"],
        2,
        "The run folder runs/a exists already. Go on with it by `--ckpt_path last`",
    ),
}


@pytest.fixture(autouse=True)
def _a_run():
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/manifest.json").write_text("{}")
    Path("facts.jsonl").write_text('{"prompt": "The sea is", "target": "deep"}\n')
    Path("bad.csv").write_text("prompt,target\nThe sea is,\n")
    Path("two.jsonl").write_text('{"prompt": "It is", "target": "a"}\n{"prompt": "It is", "target": "b"}\n')
    Path("runs/a/adapter").mkdir()
    Path("runs/a/adapter/adapter_config.json").write_text("{}")
    Path("fit.yaml").write_text("{}")
    Path("a.yaml").write_text("trainer: {default_root_dir: runs/a, fast_dev_run: false}\nckpt_path: null\n")
    Path("typo.yaml").write_text(
        "model: {base_model: {dtpe: x}, peft_config: {class_path: peft.X, init_args: {y: 1}}}\n"
    )


@pytest.mark.parametrize(("arguments", "status", "said"), CALLS.values(), ids=CALLS)
def test_what_needs_no_library_imports_none(arguments, status, said):
    program = (
        "import sys; from lit_semantic_peft.__main__ import main; status = main(sys.argv[1:]); "
        f"print('imported:', [name for name in {HEAVY} if name in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "imported: []" in done.stdout
    assert "Loading" not in done.stderr


def test_what_takes_long_to_load_is_said_before(monkeypatch, capsys):
    def load(*_):
        assert "Loading torch" in capsys.readouterr().err
        raise InputError("loaded")

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "lit_semantic_peft.cli.run", SimpleNamespace(run=load))
    assert main(["fit", "--data.facts=world"]) == 2
    assert "error: loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--config", "fit.yaml"],
        ["--config={trainer: {max_epochs: 1}}"],
        ["--config", "a.yaml", "--trainer.default_root_dir", "runs/b"],
        ["--trainer.default_root_dir=runs/b", "--config={trainer: {max_epochs: 1}, data: {num_facts: 3}}"],
        ["--config", "a.yaml", "--ckpt_path", "last"],
        ["--config", "a.yaml", "--print_config"],
        ["--model.peft_config.r=3", "--model.optimizer=SGD", "--data.prompts+=a", "--trainer.logger.project", "x"],
        ["--config", "broken.yaml"],
        ["--trainer.default_root_dir", "runs/new"],
        ["--trainer.default_root_dir", "runs/a", "--trainer.default_root_dir", "runs/b"],
        ["--trainer.default_root_dir=runs/a", "--ckpt_path=last"],
        ["--trainer.default_root_dir=runs/a", "--trainer.fast_dev_run", "true"],
        ["--data.facts=fact.jsonl", "--print_config"],
        ["--data.facts=two.jsonl", "--data.contradictions=keep"],
        ["--data.facts=two.jsonl", "--data.contradictions", "sometimes"],
        ["--data.facts=bad.csv", "--data.prompts=[x]", "--print_config=full"],
        ["--data.facts=facts.jsonl", "--model.adapter=runs/a/adapter", "--ckpt_path", "last"],
        ["--data.facts=owner/name", "--model.adapter=null", "--ckpt_path=runs"],
        [],
    ],
    ids=" ".join,
)
def test_what_may_be_usable_is_left_to_the_parser(options):
    Path("broken.yaml").write_text("data: [")
    refuse_early(["fit", *options])


def test_the_first_process_alone_looks_at_the_folder(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    refuse_early(["fit", "--trainer.default_root_dir=runs/a"])
    with pytest.raises(InputError, match="no setting"):
        refuse_early(["fit", "--trainer.default_root_dirr=runs/a"])


def test_keys_of_another_lightning_are_left_to_it():
    known = {"lightning": "0", "defaults": {"trainer.max_epochs": "null"}, "commands": {"fit": {}}}
    assert KnownOptions(known).unknown("fit", ["trainer.max_epoch", "data.x"]) == ["data.x"]
    known["lightning"] = version("lightning")
    assert KnownOptions(known).unknown("fit", ["trainer.max_epoch"]) == ["trainer.max_epoch"]


def test_other_commands_write_into_a_run():
    refuse_early(["test", "--trainer.default_root_dir=runs/a"])
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist"):
        refuse_early(["test", "-c", "nowhere.yaml"])


def test_facts_of_moderate_size_are_looked_at(monkeypatch):
    refuse_early(["score", "--data.facts=two.jsonl"])  # which lists contradictions
    fit = ["fit", "--data.facts=two.jsonl", "--trainer.default_root_dir=runs/new"]
    with pytest.raises(InputError, match=r"two.jsonl, line 2: .*contradiction"):
        refuse_early(fit)
    monkeypatch.setattr(early, "_SOON_READ", 10)
    refuse_early(fit)


def test_free_prompts_need_no_facts():
    refuse_early(["predict", "--data.facts=fact.jsonl", "--data.prompts=[Zorvex is in]"])
    refuse_early(["predict", "--data.facts=fact.jsonl", "--chat"])
    with pytest.raises(InputError, match="does not exist"):
        refuse_early(["predict", "--data.facts=fact.jsonl"])


def test_a_run_or_its_adapter_is_taken():
    refuse_no_adapter("runs/a", may_be_run=True)
    refuse_no_adapter("runs/a/adapter", may_be_run=False)
    with pytest.raises(InputError, match=r"holds no adapter \(adapter_config.json is missing\)\.$"):
        refuse_no_adapter("runs/a", may_be_run=False)


@pytest.mark.parametrize("name", ["@models/tiny", "a: b: c", "%tiny", "tiny: [x"])
def test_a_base_model_whose_name_is_no_yaml_is_a_name(name):
    refuse_early(["fit", f"--model.base_model={name}"])
    with pytest.raises(InputError, match=r"`model.base_model` is a section: expected settings below it, got nothing"):
        refuse_early(["fit", "--model.base_model=null"])
