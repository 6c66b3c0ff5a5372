"""What README and site show is run: commands, configurations, facts and Python, on small settings.

A block marked `console` is only shown: it installs, asks a hub, or needs machines.
"""

import inspect
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import lit_semantic_peft.callbacks
import lit_semantic_peft.metrics
import lit_semantic_peft.semantics
import lit_semantic_peft.training
import pytest
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.facts import read_facts
from lit_semantic_peft.reports import RunFolder
from transformers import AutoTokenizer

from fixtures.facts import write_facts

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
SECTIONS = {"model", "data", "trainer"}
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))


def notebook_texts() -> list[str]:
    """The texts between the code of the notebooks."""
    cells = [
        cell for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for cell in json.loads(path.read_text())["cells"]
    ]
    return ["".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "markdown"]


def blocks(language: str) -> list[str]:
    """The blocks of a language in README, pages and notebooks, each once."""
    text = "\n".join([README, *PAGES.values(), *notebook_texts()])
    return list(dict.fromkeys(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)))


def commands() -> list[str]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    found = [line.split("#")[0].strip() for line in text.splitlines()]
    return sorted({line for line in found if line})


def launch(path: Path) -> str:
    """The command that runs a configuration; one process here, the distributed tests start more."""
    return f"lit-semantic-peft fit --config experiments/{path.name}"


def configurations() -> list[str]:
    return [text for text in blocks("yaml") if yaml.safe_load(text).keys() <= SECTIONS]


SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.enable_progress_bar=false",
    "--interference.num_facts=4",
]


@pytest.fixture(autouse=True)
def _in_a_copy(shared_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    """The folder of a run, which the commands on a finished run are given copies of."""
    folder = tmp_path_factory.mktemp("trained")
    facts = write_facts(folder / "facts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-semantic-peft"])
        run = [f"--trainer.default_root_dir={folder / 'run'}", f"--data.facts={facts}"]
        assert main(["fit", *run, *SMALL, f"--model.base_model={tiny_model}"]) == 0
    return folder / "run"


def test_there_is_something_to_try():
    assert len(commands()) >= 10
    assert len(configurations()) >= 6
    assert len(blocks("json")) == 2
    assert len(blocks("python")) == 9


def test_the_readme_is_short():
    assert len(README.encode()) <= 9 * 1024


@pytest.mark.parametrize("text", blocks("json"))
def test_facts(text):
    Path("facts.jsonl").write_text(text.replace("\n", " "), encoding="utf-8")
    assert len(read_facts("facts.jsonl").facts) == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_says_how_it_is_run(path):
    assert launch(path) in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted({*commands(), *map(launch, SHIPPED)}))
def test_commands(command, tiny_model, facts_file, trained, capsys):
    program, *arguments = shlex.split(command)
    assert program == "lit-semantic-peft"
    # In the second epoch too, so that what is done between epochs is.
    small = [*SMALL, "--trainer.max_epochs=2", f"--model.base_model={tiny_model}"]
    if "runs/NAME" in command:
        shutil.copytree(trained, "runs/NAME")
        small = ["--trainer.default_root_dir=runs/NAME"] if "--config" in arguments else []
    elif "own_facts" not in command:
        small.append("--data.num_facts=12")
    if arguments[0] == "score":
        small = [one for one in small if "max_epochs" not in one]
    assert main([*arguments, *small]) == 0, capsys.readouterr().err
    assert arguments[0] != "fit" or len(list(Path("runs").glob("*/report.html"))) == 1


@pytest.mark.parametrize("text", configurations())
def test_configurations(text, tiny_model, facts_file, capsys):
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    arguments = ["--config=recipe.yaml", f"--data.facts={facts_file}", f"--model.base_model={tiny_model}", *SMALL]
    arguments += ["--data.selection.filters=null"] if "KnownFilter" not in text else []
    assert main(["fit", *arguments]) == 0, capsys.readouterr().err


def assert_trained_alike(names: dict[str, Any]) -> None:
    """The Trainer's first loss is the weighted mean over its rows, and weights change it."""
    rows = names["torch"].arange(len(names["facts"]))
    model, weights = names["model"].eval(), names["weights"]
    nll = names["fact_nll"](model, names["batch_of"](rows.tolist()))
    loss = names["trainer"].compute_loss(model, {"rows": rows})
    assert loss.item() == pytest.approx((weights * nll).sum().item() / weights.sum().item(), rel=1e-5)
    assert loss.item() != pytest.approx(nll.mean().item(), rel=1e-5)


def test_python(tiny_model, facts_file, monkeypatch):
    """The blocks one after the other: the trained run of the first is read and loaded by the others."""
    monkeypatch.setattr("lit_semantic_peft.training.recipe.FEWEST_STEPS", 6)
    monkeypatch.setattr("lit_semantic_peft.training.recipe.PASSES", 1)
    given = {
        "smollm2-135m": tiny_model,
        "HuggingFaceTB/SmolLM2-135M-Instruct": tiny_model,
        "facts.jsonl": facts_file,
        "runs/NAME": "runs/python",
    }

    def run_block(part: str, names: dict[str, Any]) -> dict[str, Any]:
        (text,) = (block for block in blocks("python") if part in block)
        for old, new in given.items():
            text = text.replace(old, str(new))
        exec(compile(text, part, "exec"), names)  # our own pages
        return names

    trained = run_block("L.Trainer", {})
    assert [record.epoch for record in trained["monitor"].records] == [0, 2, 4, 6]
    assert [one.name for one in trained["module"].retain] == ["own_samples", "known_facts", "input_directions"]
    assert trained["trainer"].optimizers[0].defaults["lr"] == 4e-3
    run = RunFolder("runs/python")
    assert {row["answer_after"] is None for row in run.facts.to_pylist()} == {False}
    assert run.paths.report.is_file()
    parts = {"peft_model": trained["module"].model, "tokenizer": AutoTokenizer.from_pretrained(tiny_model)}
    read = run_block("interference_matrix(peft_model", parts)
    assert len(read["table"]) == len(read["matrix"]) == run.facts.num_rows
    held = run_block("zorvex.jsonl", read)["data"]
    assert held.prepared.facts == read_facts("zorvex.jsonl").facts
    assert len(held.prepared.facts) == 2
    frame = run_block("apply_filters", {})["frame"]
    assert len(frame) == run.facts.num_rows
    assert frame["weight"].mean() == pytest.approx(1)
    read = run_block("nsmallest", {})
    assert len(read["facts"]) == run.facts.num_rows
    assert [epoch for epoch, *_ in read["history"]] == [1, 2, 3, 4, 5, 6]
    own = run_block("optimizer.zero_grad", {})
    assert len(own["conflicts"]) == 3
    of_trainer = run_block("WeightedFacts", own)
    assert len(of_trainer["interference"].conflicts) == 3
    assert_trained_alike(of_trainer)
    loaded = run_block("PeftModel.from_pretrained", {})["model"]
    assert loaded.peft_config["default"].r == 8


def test_early_stopping_by_configuration(tiny_model, facts_file):
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/nll", "patience": 1, "min_delta": 1e9},
    }
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stopping]}}), encoding="utf-8")
    small = [one for one in SMALL if "max_epochs" not in one]
    arguments = ["--config=stop.yaml", f"--data.facts={facts_file}", f"--model.base_model={tiny_model}", *small]
    assert main(["fit", *arguments, "--trainer.max_epochs=9", "--trainer.default_root_dir=runs/stop"]) == 0
    assert len(RunFolder("runs/stop").summary.epochs) == 2


def test_every_public_class_is_named_on_a_page():
    named = set(re.findall(r"\w+", "\n".join([README, *PAGES.values()])))
    packages = (lit_semantic_peft.semantics, lit_semantic_peft.training, lit_semantic_peft.callbacks)
    for package in (*packages, lit_semantic_peft.metrics):
        classes = {name for name in package.__all__ if inspect.isclass(getattr(package, name))}
        assert classes
        assert classes <= named, package.__name__
