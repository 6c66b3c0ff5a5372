"""Two processes that really start, through the command line, give what one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder
from safetensors.numpy import load_file

from fixtures.processes import run_commands

pytestmark = pytest.mark.distributed

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def fit(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "lit_semantic_peft", "fit", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def settings(tiny_model, facts_file) -> list[str]:
    return [
        f"--config={EXPERIMENTS / 'ddp_cpu.yaml'}",
        f"--model.base_model={tiny_model}",
        f"--data.facts={facts_file}",
        "--data.num_facts=null",
        "--trainer.max_epochs=3",
        "--trainer.enable_progress_bar=false",
        "--interference.num_facts=6",
        "--data.evaluation.probes=[]",
        "--data.evaluation.retention=false",
        # Far from uniform: facts weigh very differently, so a wrong normalisation shows.
        "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Remoteness, init_args: {gamma: 8}}",
    ]


@pytest.mark.parametrize("tree", [True, pytest.param(False, marks=pytest.mark.long)])
def test_two_processes_equal_one(settings, capsys, tree):
    """12 facts in steps of 8: a whole step, and a partial one that leaves the ranks unequal work.

    SGD, as AdamW hides a gradient that is wrong by a factor.
    """
    sgd = "{class_path: torch.optim.SGD, init_args: {lr: 0.3}}"
    settings = [*settings, f"--model.prefix_tree={str(tree).lower()}", f"--model.optimizer={sgd}"]
    alone = ["--data.batches.micro_batch_size=8", "--trainer.devices=1", "--trainer.strategy=auto"]
    assert main(["fit", *settings, *alone, "--trainer.default_root_dir=runs/one"]) == 0
    two = fit(*settings, "--data.batches.micro_batch_size=4", "--trainer.default_root_dir=runs/two")
    accumulating = ["--data.batches.micro_batch_size=2", "--trainer.accumulate_grad_batches=2"]
    (accumulated,) = run_commands(2, ["fit", *settings, *accumulating, "--trainer.default_root_dir=runs/accumulated"])
    assert "facts kept" in capsys.readouterr().out
    assert two.stdout.count("facts kept") == 1  # one rank reports
    assert accumulated.count("facts kept") == 1
    weights = [row["loss_weight"] for row in RunFolder("runs/one").facts.to_pylist()]
    assert max(weights) > 3 * min(weights)
    left = load_file("runs/one/adapter/adapter_model.safetensors")
    for name in ("two", "accumulated"):
        right = load_file(f"runs/{name}/adapter/adapter_model.safetensors")
        assert left.keys() == right.keys()
        residuals = []
        for key in left:
            difference = left[key] - right[key]
            assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(left[key]) + 1e-9, (name, key)
            residuals.append(difference.mean() / (np.abs(left[key]).mean() + 1e-12))
        assert abs(np.mean(residuals)) < 1e-5
        mine, other = RunFolder("runs/one").facts.to_pylist(), RunFolder(f"runs/{name}").facts.to_pylist()
        for one_row, other_row in zip(mine, other, strict=True):
            assert one_row["fact_id"] == other_row["fact_id"]
            for column in (
                "kept",
                "loss_weight",
                "answer_after",
                "efficacy_teacher_forced_after",
                "first_learned_epoch",
            ):
                assert one_row[column] == other_row[column], column
            assert one_row["nll_after"] == pytest.approx(other_row["nll_after"], rel=1e-4)
    losses = [
        [record.loss for record in RunFolder(f"runs/{name}").summary.epochs] for name in ("one", "two", "accumulated")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.long
def test_more_processes_than_facts_in_the_last_step(settings):
    """13 = 12 + 1: the second rank has no fact in the last step, and takes part all the same."""
    facts = Path("more.jsonl")
    source = next(argument for argument in settings if argument.startswith("--data.facts="))
    text = Path(source.partition("=")[2]).read_text(encoding="utf-8")
    facts.write_text(text + '{"prompt": "The river of Zorn is", "target": "Rhine"}\n', encoding="utf-8")
    arguments = [*settings, f"--data.facts={facts}", "--data.batches.micro_batch_size=3"]
    fit(*arguments, "--trainer.default_root_dir=runs/two")
    fit(
        *arguments,
        "--data.batches.micro_batch_size=6",
        "--trainer.devices=1",
        "--trainer.strategy=auto",
        "--trainer.default_root_dir=runs/one",
    )
    left, right = (load_file(f"runs/{name}/adapter/adapter_model.safetensors") for name in ("one", "two"))
    for key in left:
        assert np.linalg.norm(left[key] - right[key]) <= 1e-4 * np.linalg.norm(left[key]) + 1e-9


def test_a_failure_ends_both_processes_with_one_message(settings):
    filters = "[{class_path: lit_semantic_peft.semantics.BandFilter, init_args: {min_distance: 1.99}}]"
    done = fit(*settings, f"--data.selection.filters={filters}", "--trainer.default_root_dir=runs/bad", check=False)
    assert done.returncode == 2
    assert done.stderr.count("leave no fact") == 1
    assert "Traceback" not in done.stderr
    assert not Path("runs/bad").exists()


@pytest.mark.long
def test_an_unknown_base_model_ends_both_processes_with_one_message(settings):
    done = fit(*settings, "--model.base_model=nobody/nothing", "--trainer.default_root_dir=runs/bad", check=False)
    assert done.returncode == 2
    assert done.stderr.count("`base_model` 'nobody/nothing'") == 1
    assert "Traceback" not in done.stderr
    assert not Path("runs/bad").exists()


@pytest.mark.long
def test_strata_drawn_answers_and_filters_do_not_depend_on_the_number_of_processes(settings):
    """Each run measures with a cache of its own; only the first rank decides."""
    semantics = "lit_semantic_peft.semantics"
    drawn = "{num_samples: 2, temperature: 2.0}"
    asked = "{num_prompts: 2, num_shots: 1, num_samples: 1}"
    chosen = [
        *settings,
        "--trainer.max_epochs=1",
        f"--data.selection.distance={{class_path: {semantics}.ResponseDistance, init_args: {drawn}}}",
        f"--data.selection.strata={{class_path: {semantics}.Strata, init_args: {asked}}}",
        "--data.selection.filters="
        f"[{{class_path: {semantics}.RedundancyFilter, init_args: {{prompt_similarity: 0.999}}}},"
        f"{{class_path: {semantics}.DispersionFilter, init_args: {{keep: 0.7}}}}]",
    ]
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batches.micro_batch_size=8"]
    fit(*chosen, *one, "--trainer.default_root_dir=runs/one", "--data.cache_dir=cache_one")
    two = ["--data.batches.micro_batch_size=4"]
    fit(*chosen, *two, "--trainer.default_root_dir=runs/two", "--data.cache_dir=cache_two")
    rows = [RunFolder(f"runs/{name}").facts.to_pylist() for name in ("one", "two")]
    for column in ("fact_id", "kept", "drop_reason", "stratum", "distance", "loss_weight"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]], column
    assert {row["kept"] for row in rows[0]} == {True, False}
    assert all(row["stratum"] for row in rows[0])
    assert len({row["distance"] for row in rows[0]}) > 6
