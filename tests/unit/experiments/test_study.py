"""The study: what is run again, what is refused, what is exact, and what its statistics say."""

import copy
import inspect
import json
import re
import shutil
import time
from dataclasses import is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from experiments import running
from experiments.studies import Cancelled, with_section
from experiments.study import execute, statistics
from experiments.study.__main__ import main
from experiments.study.cells import MEASURES, Cell, effect_of_dropping, effective_facts, load_cells
from experiments.study.comparisons import PRIMARY, against_parts, against_plain, against_random, compare
from experiments.study.control import RandomLike
from experiments.study.facts import facts_of
from experiments.study.ledger import ledger
from experiments.study.plan import HERE, ROOT, TUNE_SEED, config_of, load_arm, load_setting, runs_of
from experiments.study.questions import answers
from experiments.study.results import TOKEN_TOLERANCE, ResultFolder, choose_learning_rate, unfairness
from experiments.study.statistics import (
    Sample,
    adjusted_means,
    adjusted_trend,
    holm,
    over_seeds,
    rank_correlation,
    sample,
)
from experiments.study.table import BEGIN, PAGE, is_published, page_section, results_page, results_path
from experiments.study.wording import headline, number, verdict
from lit_semantic_peft.cli.lightning_cli import SemanticPeftCLI
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.evaluator import EVALUATION_VERSION
from lit_semantic_peft.semantics import BandFilter, ScoredFacts
from lit_semantic_peft.training import SemanticPeftModule
from scipy.stats import spearmanr
from scipy.stats import t as student

SETTINGS = ("smoke", "cpu", "gpu")
TINY = {
    "base_model": "given on the command line",
    "accelerator": "cpu",
    "threads": 1,
    "processes": 1,
    "num_known_facts": 2,
    "num_neighbors": 4,
    "max_candidates": 40,
    "results": "nowhere",
    "seconds": {"start": 1.0, "fact": 0.01, "evaluation": 0.01},
    "methods": {
        "lora": {
            "class_path": "peft.LoraConfig",
            "init_args": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
        }
    },
    "blocks": {
        "primary": {
            "facts": "fictional",
            "num_facts": 8,
            "facts_per_step": 2,
            "epochs": 2,
            "method": "lora",
            "arms": ["plain", "mean_variance"],
            "seeds": [0],
            "learning_rates": [1.0e-2],
            "with_filter_controls": True,
            "alone_facts": 2,
            "start_transfer": True,
        }
    },
}


@pytest.fixture(autouse=True)
def few_resamples(request, monkeypatch):
    """What is asked of the code shows with few; what is shown to readers is made with all."""
    if "files" not in request.node.name:
        monkeypatch.setattr(statistics, "RESAMPLES", 4_000)


@pytest.fixture
def study(tmp_path, tiny_model, monkeypatch):
    """A tiny study: its setting, and a function that runs one of its commands."""
    monkeypatch.setattr(execute, "WORK", tmp_path / "work")
    monkeypatch.setattr(running, "set_up", lambda threads: None)  # the threads of the tests are theirs
    monkeypatch.setattr("lit_semantic_peft.reports.html.build_report", lambda *_: None)  # nobody reads it
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    options = ["--setting", str(path), "--base_model", str(tiny_model), "--results", str(tmp_path / "results")]
    return load_setting(str(path), str(tiny_model), tmp_path / "results"), lambda *words: main([*words, *options])


def contents(setting) -> dict[str, bytes]:
    return {str(path.relative_to(setting.results)): path.read_bytes() for path in setting.results.rglob("*.json")}


def numbers(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("seconds", "provenance")}


def test_a_study_from_start_to_table(study, capsys):
    setting, command = study
    assert command("run") == 0
    first = contents(setting)
    names = [run.name for role in ("tune", "report") for run in runs_of(setting, role)]
    assert len(names) == 7
    assert {f"{name}.json" for name in names} | {name for name in first if name.startswith("facts/")} == set(first)
    results = {name: json.loads(first[f"{name}.json"]) for name in names}
    assert {one["status"] for one in results.values()} == {"done"}, [one.get("error") for one in results.values()]
    assert all(one["provenance"]["commit"] is not None for one in results.values())

    # The same steps for both; the filter and its control see fewer facts, of the same make.
    plain = results["primary/plain-steps-0"]
    own, control = (results[f"primary/mean_variance{one}-exposures-0"] for one in ("", "-control"))
    assert plain["num_steps"] == results["primary/mean_variance-steps-0"]["num_steps"] == 8
    assert plain["num_tokens"] == 2 * plain["tokens_of_fact"]
    assert own["num_exposures"] == control["num_exposures"] == 2 * 6
    assert own["kept"].count("1") == control["kept"].count("1") == 6
    assert plain["nll"] != own["nll"] != control["nll"]
    assert len(plain["start_transfer"]) == len(plain["nll"])
    assert sum(one is not None for one in plain["alone_versus_together"]) == 2

    # Nothing is run again; a deleted result is, alone, and comes out exactly the same.
    assert command("run") == 0
    assert contents(setting) == first
    (setting.results / "primary" / "plain-steps-0.json").unlink()
    assert command("run") == 0
    again = contents(setting)
    assert [name for name in first if first[name] != again[name]] == ["primary/plain-steps-0.json"]
    assert numbers(json.loads(again["primary/plain-steps-0.json"])) == numbers(plain)

    assert command("table") == 0
    page = (setting.results / "RESULTS.md").read_text(encoding="utf-8")
    assert "| mean_variance | 0.01 |" in page
    chosen_by = np.mean(results["primary/tune-plain-0.01"]["nll"][:8])
    assert f"| plain, 8 facts (fictional), 2 epochs, lora | {chosen_by:.2f} |" in page
    assert "(8×1)" in page
    assert "2 of 2 ways of training have results." in page
    block = setting.blocks["primary"]
    half_done = replace(setting, blocks={"primary": replace(block, seeds=(*block.seeds, 99))})
    page_of_half = results_page(half_done, load_cells(half_done), [], Path("plots"))
    assert "2 of them of fewer than 2 seeds (at least 1)" in page_of_half
    for letter in "ef":
        assert f"**({letter})" in page
        assert "Not answered yet" in page.split(f"**({letter})")[1].split("**(")[0], "no such arm was run"
    for letter in "abcdgh":
        assert (setting.results / "plots" / f"{letter}.png").is_file(), letter
        assert f"plots/{letter}.png" in page
    capsys.readouterr()
    assert command("list") == 0
    assert "7 done" in capsys.readouterr().out


def test_what_is_outdated_cancelled_or_failed_is_run_again(study, monkeypatch):
    setting, _ = study
    runs = runs_of(setting, "tune")
    rate = 1e-2
    order = execute.order_of(runs[0], setting, rate)
    folder = ResultFolder(setting.results)

    def interrupted(*_):
        try:
            raise Cancelled("signal 15")
        except Exception as error:
            raise InputError("a file that cannot be read") from error

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_command", interrupted)
        with pytest.raises(Cancelled):
            execute.execute(order, setting)
    assert folder.read(runs[0].name)["status"] == "cancelled"
    assert not list((execute.WORK / "runs").iterdir()), "a cancelled run leaves no folder"

    for error, said in (
        (InputError("`lr` is too large"), "`lr` is too large"),
        (RuntimeError("a defect"), "RuntimeError: a defect"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(running, "run_command", Mock(side_effect=error))
            assert execute.execute(order, setting)[1] == "failed"
        assert folder.read(runs[0].name)["error"] == said
    assert len(execute.pending(setting, folder, "tune")) == 2
    (setting.results / f"{runs[0].name}.json").unlink()
    assert not execute.pending(setting, folder, "report"), "the learning rate is not chosen yet"
    folder.write(runs[0].name, {"status": "done", "key": order.key})
    assert len(execute.pending(setting, folder, "tune")) == 1
    assert execute.order_of(runs[0], setting, 2 * rate).key != order.key
    other = replace(setting, threads=2)
    assert execute.order_of(runs[0], other, rate).key != order.key

    begun = execute.execute(order, setting, deadline=0.0)
    assert begun[1] == "left for the next part"


def test_an_earlier_stage_is_chosen_for_and_run_before_a_later_one_is_chosen_for(study, monkeypatch):
    setting, _ = study
    setting = replace(setting, stages=(("mean_variance",), ("plain",)))
    begun = []

    def done(order, setting, deadline, slowness):
        begun.append(order.run)
        ResultFolder(setting.results).write(order.run.name, {"status": "done", "key": order.key, "nll": [0.0]})
        return order.run.name, "done", 0.0

    monkeypatch.setattr(execute, "execute", done)
    monkeypatch.setattr(execute, "choose_learning_rate", lambda run, *_: 1e-2)
    assert execute.run_all(setting, processes=1, minutes=None) == 0
    steps = list(dict.fromkeys((run.arm.name, run.role) for run in begun))
    assert steps == [(arm, role) for arm in ("mean_variance", "plain") for role in ("tune", "report")]
    assert len(begun) == 7


@pytest.mark.parametrize("stages", [[["nonsense"]], [["plain"], ["plain"]]])
def test_stages_name_each_arm_once(stages, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "stages": stages}), encoding="utf-8")
    with pytest.raises(InputError, match="stages"):
        load_setting(str(path))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_plan_fair_blocks(name):
    setting = load_setting(name)
    for block in setting.blocks.values():
        assert len(block.seeds) >= (2 if name == "smoke" else 5)
        kept = 0.75 * block.num_facts
        with_filter = [arm for arm in block.arms if load_arm(arm).has_filter]
        assert not with_filter or kept % block.facts_per_step == 0, "a filter's steps would not be full"
        assert block.num_facts % block.facts_per_step == 0
    runs = [*runs_of(setting, "tune"), *runs_of(setting, "report")]
    assert len({run.name for run in runs}) == len(runs)
    tuned = {}
    for run in runs_of(setting, "tune"):
        assert run.seed == TUNE_SEED
        tuned.setdefault((run.block.name, run.arm.name), []).append(run.learning_rate)
    for block in {place[0] for place in tuned}:
        assert len({tuple(rates) for place, rates in tuned.items() if place[0] == block}) == 1, "not the same budget"


def test_the_cpu_setting_is_within_its_budget_and_its_ledger_is_written_down():
    setting = load_setting("cpu")
    runs = [*runs_of(setting, "tune"), *runs_of(setting, "report")]
    assert sum(run.seconds(setting) for run in runs) / setting.processes <= 6 * 3600
    assert max(run.seconds(setting) for run in runs) < 50 * 60
    for name in ("cpu", "gpu"):
        written = (HERE / "ledgers" / f"{name}.md").read_text(encoding="utf-8")
        assert written == ledger(load_setting(name))
    everything = {path.stem for path in (HERE / "arms").glob("*.yaml")}
    assert set(setting.blocks["primary"].arms) == everything


NO_NUMBER_DEPENDS_ON = {
    "model": {"adapter"},
    "data": {"prompts", "max_new_tokens", "cache_dir", "base_model", "self_check"},  # the model is the module's
    "report": {"log_fact_text", "wandb_rows", "wandb_table_every_n_epochs", "wandb_artifact", "wandb_all_columns"},
    "trainer": {"default_root_dir", "log_every_n_steps", "enable_model_summary"},
}


def unnamed(config):
    """The settings that a YAML leaves to the package's defaults, although a number may depend on them.

    Those of torch, peft and Lightning are no part of it: their versions are in each run's key.
    """
    parser = Mock()
    SemanticPeftCLI.add_arguments_to_parser(Mock(), parser)
    sections = {call.args[1]: call.args[0] for call in parser.add_lightning_class_args.call_args_list}
    sections |= {"model": SemanticPeftModule, "data": KnowledgeDataModule}
    (of_trainer,) = parser.set_defaults.call_args.args  # Lightning's arguments with defaults of this package
    missing = [key for key in of_trainer if key.partition(".")[2] not in config["trainer"]]
    for section, kind in sections.items():
        missing += unnamed_of(kind, config.get(section, {}), section)
    missing += unnamed_within(config["trainer"]["callbacks"], "trainer.callbacks")
    ignored = {f"{section}.{name}" for section, names in NO_NUMBER_DEPENDS_ON.items() for name in names}
    return sorted(set(missing) - ignored)


def unnamed_of(kind, named, place):
    missing, hints = [], get_type_hints(kind.__init__)
    for name in inspect.signature(kind).parameters:
        here = f"{place}.{name}"
        if name not in named:
            missing.append(here)
            continue
        value, hint = named[name], hints[name]
        group = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        if group is not None and isinstance(value, dict) and "class_path" not in value:
            missing += unnamed_of(group, value, here)
        else:
            missing += unnamed_within(value, here)
    return missing


def unnamed_within(value, place):
    """Of classes of the package and of the study that are named somewhere in a value."""
    if isinstance(value, list):
        return [one for item in value for one in unnamed_within(item, place)]
    if not isinstance(value, dict) or "class_path" not in value:
        return []
    module, _, name = value["class_path"].rpartition(".")
    if module.partition(".")[0] not in ("lit_semantic_peft", "experiments"):
        return []
    return unnamed_of(getattr(import_module(module), name), value.get("init_args", {}), f"{place}.{name}")


def configs_of(name):
    """A YAML of each kind of run of a setting."""
    setting = load_setting(name)
    runs = [*runs_of(setting, "tune"), *runs_of(setting, "report")]
    kinds = {(one.block.name, one.arm.name, one.role, one.pace, one.is_control): one for one in runs}
    return {run.name: config_of(run, setting, 1e-3, Path("facts.jsonl")) for run in kinds.values()}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_names_everything_that_its_numbers_depend_on(name):
    """So a new default changes no earlier result: who adds an argument decides what the study says about it."""
    found = {run: missing for run, config in configs_of(name).items() if (missing := unnamed(config))}
    assert not found, "name it in experiments/study/defaults.yaml, in the arm, or above if no number depends on it"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.retain", "model.retain"),
        ("model.base_model.dtype", "model.base_model.dtype"),
        ("data.seed", "data.seed"),
        ("data.batches.bucket_steps", "data.batches.bucket_steps"),
        ("data.evaluation.num_choices", "data.evaluation.num_choices"),
        ("data.selection.distance.init_args.pooling", "data.selection.distance.ExpectedEmbeddingDistance.pooling"),
        (
            "data.selection.filters.0.init_args.gradients.init_args.rank",
            "InterferenceFilter.gradients.WarmGradients.rank",
        ),
        ("trainer.callbacks.0.init_args.beta", "trainer.callbacks.InterferenceWeighting.beta"),
        ("trainer.num_sanity_val_steps", "trainer.num_sanity_val_steps"),
        ("interference.seed", "interference.seed"),
        ("export", "export.monitor"),
    ],
)
def test_what_a_run_does_not_name_is_found(key, said):
    config = copy.deepcopy(
        next(one for name, one in configs_of("cpu").items() if name.startswith("primary/aware-steps"))
    )
    *way, last = key.split(".")
    place = config
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    del place[last]
    assert any(one.endswith(said) for one in unnamed(config))


def test_an_arm_replaces_a_class_whole_and_leaves_the_other_settings():
    configs = configs_of("cpu")
    plain, arm = (
        next(one for name, one in configs.items() if name.startswith(f"primary/{start}"))
        for start in ("plain-steps", "online_proximity-steps")
    )
    changed = copy.deepcopy(plain)
    changed["data"]["selection"]["weighting"] = load_arm("online_proximity").config["data"]["selection"]["weighting"]
    assert arm["data"] == changed["data"]
    assert arm["model"] == plain["model"]


@pytest.mark.parametrize(
    "text",
    [
        "group: weighting\ntrainer: {max_epochs: 9}",
        "group: weighting\ndata: {num_facts: 9}",
        "group: weighting\ndata: {seed: 1}",
        "group: weighting\ndata: {batches: {micro_batch_size: 4}}",
        "group: weighting\ndata: {selection: {deferred_from_epoch: 4}}",
        "group: weighting\nseed_everything: 1",
        "group: weighting\nmodel: {optimizer: {class_path: torch.optim.SGD}}",
    ],
)
def test_an_arm_that_would_not_be_fair_is_refused(tmp_path, text):
    (tmp_path / "unfair.yaml").write_text(text, encoding="utf-8")
    key = text.split("\n")[1].split(":")[0]
    with pytest.raises(InputError, match=rf"unfair.yaml: `{key}[.\w]*` is the same for all arms of a block"):
        load_arm("unfair", tmp_path)


def test_a_run_that_was_not_fair_is_refused():
    setting = load_setting("cpu")
    by_name = {run.name: run for run in runs_of(setting, "report")}
    fair = {"num_kept": 256, "num_steps": 48, "num_tokens": 3000, "tokens_of_fact": 1000, "num_exposures": 768}
    plain = by_name["primary/proximity-steps-0"]
    assert unfairness(plain, fair) is None
    assert "47 optimizer steps" in unfairness(plain, fair | {"num_steps": 47})
    assert "tokens" in unfairness(plain, fair | {"num_tokens": 3001})
    assert "without a filter" in unfairness(plain, fair | {"num_kept": 255})
    filtered = fair | {"num_kept": 192, "tokens_of_kept": 700}
    at_steps, at_exposures = (by_name[f"primary/band-{pace}-0"] for pace in ("steps", "exposures"))
    assert unfairness(at_steps, filtered | {"num_tokens": int(3000 * (1 + 0.9 * TOKEN_TOLERANCE))}) is None
    assert "tokens" in unfairness(at_steps, filtered | {"num_tokens": int(3000 * (1 + 1.1 * TOKEN_TOLERANCE))})
    assert unfairness(at_exposures, filtered | {"num_exposures": 576, "num_tokens": 2100}) is None
    assert "3 times each" in unfairness(at_exposures, filtered | {"num_exposures": 576, "num_tokens": 2101})


def test_facts_that_choose_and_facts_that_are_reported_have_no_subject_in_common(study, tmp_path):
    setting, _ = study
    (block,) = setting.blocks.values()

    def subjects(role, size):
        path = facts_of(replace(block, num_facts=size), role, setting, tmp_path / "facts").path
        return [json.loads(line)["subject"] for line in path.read_text(encoding="utf-8").splitlines()]

    assert not set(subjects("tune", 8)) & set(subjects("report", 8))
    assert set(subjects("report", 4)) <= set(subjects("report", 8)), "smaller blocks are part of larger ones"
    with pytest.raises(InputError, match="asks for 99 facts to tune"):
        subjects("tune", 99)


def test_the_learning_rate_is_chosen_on_trained_facts_only(tmp_path):
    setting = load_setting("cpu")
    folder = ResultFolder(tmp_path)
    run = next(run for run in runs_of(setting, "report") if run.arm.name == "random")
    candidates = [one for one in runs_of(setting, "tune") if one.arm.name == "random" and one.block == run.block]
    low, high = candidates
    common = {"status": "done", "kept": "110", "num_taught": 3}
    folder.write(low.name, common | {"nll": [1.0, 1.0, 0.0]})
    assert choose_learning_rate(run, setting, folder) is None
    folder.write(high.name, common | {"nll": [0.5, 0.5, 9.0]})
    assert choose_learning_rate(run, setting, folder) == high.learning_rate
    folder.write(high.name, {"status": "failed"})
    assert choose_learning_rate(run, setting, folder) == low.learning_rate


def test_the_random_control_drops_as_many_of_each_relation():
    distance = np.linspace(0.1, 1.9, 24)
    relation = tuple("xyz"[place % 3] if place < 16 else "x" for place in range(24))
    facts = ScoredFacts(tuple(f"f{n}" for n in range(24)), relation, distance, distance, np.zeros(24, dtype=bool))
    band = BandFilter(min_quantile=0.2, max_quantile=0.8)
    own = band.select(facts).kept
    controls = [RandomLike(band, seed).select(facts).kept for seed in range(3)]
    for kept in controls:
        for name in "xyz":
            rows = np.array(relation) == name
            assert kept[rows].sum() == own[rows].sum()
        assert (kept != own).any()
    assert (controls[0] != controls[1]).any()


def test_the_bootstrap_covers_facts_and_seeds():
    generator = np.random.default_rng(0)
    hits, trials = 0, 40
    for trial in range(trials):
        values = generator.normal(size=(20, 1)) * 0.5 + generator.normal(size=(1, 40)) + generator.normal(size=(20, 40))
        low, high = sample(values, seed=trial).interval()
        hits += low <= 0 <= high
    assert hits / trials > 0.85
    # As if single values were independent, the interval would be a fraction of this.
    naive = 2 * 1.96 * values.std() / np.sqrt(values.size)
    assert high - low > 3 * naive


def test_a_bootstrap_without_mask_is_the_mean_and_pairs_cancel():
    values = np.arange(6.0).reshape(2, 3)
    found = sample(values)
    assert (found.value, found.num_facts, found.num_seeds) == (2.5, 3, 2)
    shifted = sample(values + 1.0).minus(found)
    np.testing.assert_allclose(shifted.draws, 1.0)
    assert shifted.interval(20) == (pytest.approx(1.0), pytest.approx(1.0))
    wide, narrow = found.interval(20), found.interval()
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1]


def test_p_values_and_their_correction():
    draws = np.concatenate([np.full(9_900, 1.0), np.full(100, -1.0)])
    with_error = 2 * (100 + 2 * np.sqrt(100)) / 10_000
    assert Sample(1.0, draws, 1, 1).p_value == pytest.approx(with_error, rel=0.02)
    assert holm([0.02, 0.5]) == [pytest.approx(0.04), pytest.approx(0.5)]
    certain = Sample(1.0, np.full(10_000, 1.0), 1, 1)
    even = Sample(0.0, np.linspace(-1, 1, 10_000), 1, 1)
    assert [one.sign for one in compare({"a": certain, "b": even})] == [1, 0]


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(1)
    left = generator.normal(size=(3, 30))
    right = left + generator.normal(size=(3, 30))
    found = rank_correlation(left, right)
    expected = np.mean([spearmanr(*pair).statistic for pair in zip(left, right, strict=True)])
    assert found.value == pytest.approx(expected)
    assert found.interval()[0] < expected < found.interval()[1]


def test_ranks_within_strata_see_no_difference_between_them():
    stratum = np.repeat(["low", "high"], 20).tolist()
    place = np.tile(np.arange(20.0), 2)
    left = np.repeat([0.0, 100.0], 20) + place
    against = np.repeat([0.0, 100.0], 20) - place  # together they rise, within each they fall
    over_all, within = (rank_correlation(left[None], against[None], groups) for groups in (None, stratum))
    assert over_all.value > 0.4
    assert within.value == pytest.approx(-1.0)
    assert rank_correlation(left[None], left[None], stratum).value == pytest.approx(1.0)


def test_a_trend_is_a_slope_within_strata():
    stratum = np.repeat(["low", "high"], 20).tolist()
    by = np.arange(40.0)
    generator = np.random.default_rng(0)
    values = np.repeat([0.0, 9.0], 20) - by / 39 + generator.normal(size=(5, 40)) * 0.01
    found = adjusted_trend(values, by, stratum)
    assert found.value == pytest.approx(-1.0, abs=0.05)
    assert found.interval()[0] < found.value < found.interval()[1] < 0
    design = np.stack([by / 39, np.repeat([1.0, 0.0], 20), np.repeat([0.0, 1.0], 20)], axis=1)
    expected = np.linalg.lstsq(design, values.mean(axis=0), rcond=None)[0][0]
    assert found.value == pytest.approx(expected)


def test_where_seeds_decide_the_interval_is_students():
    generator = np.random.default_rng(0)
    hits, bootstrap_hits, trials = 0, 0, 200
    for _ in range(trials):
        values = generator.normal(size=(5, 1)) + 0.01 * generator.normal(size=(5, 16))
        (low, high), (low_of_bootstrap, high_of_bootstrap) = over_seeds(values).interval(), sample(values).interval()
        hits += low <= 0 <= high
        bootstrap_hits += low_of_bootstrap <= 0 <= high_of_bootstrap
    assert 0.91 < hits / trials < 0.99
    assert bootstrap_hits < hits, "five seeds drawn again never reach beyond their own range"
    values = np.array([[1.0], [2.0], [4.0]])
    expected = student.interval(0.95, 2, loc=7 / 3, scale=values.std(ddof=1) / np.sqrt(3))
    assert over_seeds(values).interval() == pytest.approx(expected, rel=0.01)
    alone = over_seeds(values[:1])
    assert alone.interval() == (-np.inf, np.inf)
    assert alone.p_value == 1


def test_no_verdict_hangs_on_the_seed_of_the_resampling():
    """Just beyond 0 by the plain percentile, and not by more than drawing anew would change."""
    draws = np.sort(np.random.default_rng(0).normal(size=10_000))
    at_the_edge = Sample(2.0, draws - np.quantile(draws, 0.025) + 0.005, 9, 5)
    assert at_the_edge.draws.min() < 0 < np.quantile(at_the_edge.draws, 0.025)
    assert compare({"edge": at_the_edge})[0].sign == 0
    assert at_the_edge.p_value > 0.05


def test_how_many_facts_a_weighting_is_worth():
    facts = {"distance": [0.1, 0.5, 0.9, 1.3], "nll_before": [1.0, 2.0, 3.0, 4.0], "relation": ["x"] * 4}
    cell = replace(made("remoteness", "weighting", (0,)), facts=facts)
    weight = np.array(facts["distance"])
    assert effective_facts(cell) == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert 3 < effective_facts(replace(cell, arm="flow")) < 4
    assert effective_facts(replace(cell, arm="paper")) > 3.5
    for arm in ("plain", "random", "focal", "scheduled", "progress"):
        assert effective_facts(replace(cell, arm=arm)) is None


def test_a_filter_with_a_weighting_is_compared_with_each_alone():
    right = {"recalled": ["1111"]}
    cells = {
        (PRIMARY, arm, "steps", False): made(arm, group, (0,), **right)
        for arm, group in (
            ("plain", "plain"),
            ("paper", "both"),
            ("mean_variance", "filter"),
            ("proximity", "weighting"),
            ("remoteness", "weighting"),
            ("aware", "both"),
            ("progress", "aware"),
        )
    }
    found = against_parts(cells)
    assert [one.label for one in found] == ["aware − progress", "paper − mean_variance", "paper − proximity"]
    assert {one.num_comparisons for one in found} == {4}, "`aware` without its weighting is planned too"


def test_the_effect_of_dropping_is_measured_on_what_is_kept():
    block = load_setting("cpu").blocks["primary"]

    def cell(recalled, kept):
        results = tuple({"num_taught": 4, "kept": k, "recalled": r} for k, r in zip(kept, recalled, strict=True))
        return Cell(block, "x", "filter", (0, 1), results, {})

    plain = cell(["1100", "1010"], ["1111", "1111"])
    filtered = cell(["1110", "1110"], ["0110", "1100"])
    # Seed 0 keeps facts 1 and 2: 1 − 1 and 1 − 0; seed 1 keeps 0 and 1: 1 − 1 and 1 − 0.
    assert effect_of_dropping(filtered, plain, "recalled").value == pytest.approx(0.5)


def test_a_mix_of_relations_is_adjusted_for():
    # Near facts are recalled better in each relation, far facts in all: most of them are of the easy relation.
    group = np.repeat([0, 1, 0, 1], [10, 40, 40, 10])
    relation = np.repeat(["easy", "hard"], 50).tolist()
    generator = np.random.default_rng(0)
    values = np.repeat([0.95, 0.75, 0.35, 0.15], [10, 40, 40, 10]) + generator.normal(size=(5, 100)) * 0.01
    near, far = (sample(values, np.broadcast_to(group == one, values.shape)) for one in (0, 1))
    assert compare({"raw": far.minus(near)})[0].sign == 1
    adjusted = adjusted_means(values, group, relation)
    difference = adjusted[1].minus(adjusted[0])
    assert compare({"adjusted": difference})[0].sign == -1
    assert difference.value == pytest.approx(-0.2, abs=0.01)
    # The means of both are those of facts that are half easy, half hard.
    assert [one.value for one in adjusted] == pytest.approx([0.65, 0.45], abs=0.01)
    assert [one.num_facts for one in adjusted] == [50, 50]
    apart = adjusted_means(values[:, [*range(10), *range(90, 100)]], np.repeat([0, 1], 10), ["x"] * 10 + ["y"] * 10)
    assert not any(one.num_facts for one in apart), "no relation has near and far facts"


def test_all_or_none_is_not_certain():
    none = sample(np.zeros((5, 42)), kind="share")
    low, high = none.interval()
    assert low == pytest.approx(0.0)
    assert high == pytest.approx(1.96**2 / (42 + 1.96**2), rel=0.01), "Wilson's upper end for 0 of 42"
    assert none.interval(8)[1] > high
    every = sample(np.ones((5, 42)), kind="share")
    assert every.interval() == pytest.approx((1 - high, 1.0))
    alike = every.minus(every)
    assert alike.interval() == pytest.approx((-high, high)), "no difference among 42 facts"
    assert alike.p_value == 1
    with_one = np.zeros((5, 42))
    with_one[:, 0] = 1.0
    low, high = sample(with_one, kind="difference of shares").interval()
    assert (low, high) == (0.0, pytest.approx(0.07, abs=0.03)), "percentiles where there is something to draw"


def test_what_was_never_drawn_is_not_beyond_chance():
    assert Sample(float("nan"), np.full(10_000, np.nan), 1, 1).p_value == 1


def test_relations_drawn_anew_widen_what_hangs_on_them():
    values = np.tile(np.repeat([0.0, 1.0], 50), (5, 1))
    narrow, wide = sample(values), sample(values, clusters=["x"] * 50 + ["y"] * 50)
    assert narrow.value == wide.value
    assert wide.interval() == (0.0, 1.0), "one of four draws holds a single relation"
    assert narrow.interval()[1] - narrow.interval()[0] < 0.25


def test_what_is_planned_counts_before_it_is_there():
    draws = np.random.default_rng(0).normal(size=10_000)
    found = {name: Sample(mean, draws + mean, 1, 1) for name, mean in (("a", 2.6), ("b", 2.9), ("c", 0.1))}
    early, late = compare({"a": found["a"]}, 3)[0], compare(found, 3)[0]
    assert early.difference.interval(early.num_comparisons) == late.difference.interval(late.num_comparisons)
    assert early.sign == late.sign == 1
    assert late.p_value <= early.p_value == pytest.approx(3 * found["a"].p_value)


def made(arm, group, seeds, num_kept=4, **values):
    """A cell of the primary block with four facts."""
    results = tuple(
        {"num_taught": 4, "num_kept": num_kept, "kept": "1" * num_kept + "0" * (4 - num_kept)} for _ in seeds
    )
    results = tuple(
        one | {name: value[seed] for name, value in values.items()} for one, seed in zip(results, seeds, strict=True)
    )
    block = replace(load_setting("cpu").blocks["primary"], facts_per_step=1)
    return Cell(block, arm, group, seeds, results, {"relation": ["x", "x", "y", "y"]})


def test_families_are_all_arms_of_the_block_and_all_its_filters():
    plain = made("plain", "plain", (0, 1), recalled=["1010", "0110"])
    other = made("band", "filter", (0, 1), recalled=["1011", "0110"])
    cells = {("primary", one.arm, "steps", False): one for one in (plain, other)}
    (found,) = against_plain(cells, "primary", "recalled")
    assert found.num_comparisons == len(plain.block.arms) - 1 == 20
    cells["primary", "band", "steps", True] = other
    (dropping,) = against_random(cells, "recalled", "steps")
    assert {one.num_comparisons for one in (dropping.own, dropping.control, dropping.difference)} == {4}


def test_a_filter_is_compared_over_the_seeds_that_all_three_have():
    plain = made("plain", "plain", (0, 1), recalled=["0000", "0000", "0000"])
    own = made("band", "filter", (1, 2), recalled=["0000", "1100", "1111"])
    control = made("band", "filter", (0, 1), recalled=["1111", "1000", "1111"])
    cells = {
        ("primary", "plain", "steps", False): plain,
        ("primary", "band", "exposures", False): own,
        ("primary", "band", "exposures", True): control,
    }
    (found,) = against_random(cells, "recalled", "exposures")
    assert [part.difference.value for part in (found.own, found.control, found.difference)] == [0.5, 0.25, 0.25]
    assert found.difference.difference.num_seeds == 1
    cells["primary", "band", "exposures", True] = control.of_seeds([0])
    assert not against_random(cells, "recalled", "exposures")


def test_areas_are_compared_only_between_the_same_steps():
    area = {"nll_area": [[1.0, 2.0, 3.0, 4.0]], "nll": [[0.0] * 4]}
    plain, whole = made("plain", "plain", (0,), **area), made("proximity", "weighting", (0,), **area)
    part = made("paper", "both", (0,), num_kept=3, **area)
    cells = {("primary", one.arm, "steps", False): one for one in (plain, whole, part)}
    assert [one.label for one in against_plain(cells, "primary", "nll")] == ["proximity", "paper"]
    assert [one.label for one in against_plain(cells, "primary", "nll_area")] == ["proximity"]


@pytest.fixture
def some_results(tmp_path):
    """The setting `cpu` with the results of two arms, two seeds each, and the path of one."""
    source = load_setting("cpu").results
    names = [f"{arm}-steps-{seed}" for arm in ("plain", "proximity") for seed in (0, 1)]
    names += [f"tune-{arm}-{rate}" for arm in ("plain", "proximity") for rate in ("0.0015", "0.003")]
    (tmp_path / "primary").mkdir()
    for name in names:
        shutil.copy(source / "primary" / f"{name}.json", tmp_path / "primary")
    shutil.copytree(source / "facts", tmp_path / "facts")
    return load_setting("cpu", results=tmp_path), tmp_path / "primary" / "proximity-steps-1.json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_fingerprint", "another"),
        ("versions", {"torch": "1.0"}),
        ("threads", 2),
        ("study_version", 0),
        ("facts_key", "another"),
    ],
)
def test_results_of_other_versions_are_not_compared(some_results, name, value):
    setting, path = some_results
    result = json.loads(path.read_text(encoding="utf-8"))
    changed = result if name in result else result["depends_on"]
    config = result["depends_on"]["config"]
    changed[name] = value
    if name == "facts_key":
        config["data"]["facts"] = value
    path.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(InputError, match=f"primary/proximity-steps-1.json and .*plain-steps-0.json .*`{name}` is"):
        load_cells(setting)


def test_outdated_results_are_neither_shown_nor_counted_as_done(some_results):
    setting, path = some_results
    cells = load_cells(setting)
    assert [cell.seeds for cell in cells.values()] == [(0, 1), (0, 1)]
    assert page_section(setting, cells, []).startswith("8 of 309 runs of the setting `cpu` are done. They took")
    result = json.loads(path.read_text(encoding="utf-8"))
    result["depends_on"]["config"]["model"]["schedule"] = "constant"
    path.write_text(json.dumps(result), encoding="utf-8")
    cells = load_cells(setting)
    assert [cell.seeds for cell in cells.values()] == [(0, 1), (0,)]
    assert "7 of 309 runs of the setting `cpu` are done, 1 outdated." in page_section(setting, cells, [])


def test_sentences_follow_the_numbers(some_results):
    setting, _ = some_results
    cells = load_cells(setting)
    place = (PRIMARY, "proximity", "steps", False)

    def said(letter, **changed):
        """The answer where all runs of the arm have other numbers."""
        results = tuple(one | changed for one in cells[place].results)
        found = answers(setting, {**cells, place: replace(cells[place], results=results)})
        return next(" ".join([one.sentence, *one.points]) for one in found if one.letter == letter)

    beaten = "is seen to beat equal weights in recall at the study's main budget of 48 steps; "
    assert said("e").startswith(f"None of the weightings tried {beaten}none is seen to do worse. ")
    assert "* No difference seen: `proximity` " in said("e")
    assert said("e", recalled="1" * 288).startswith(f"1 of the weightings tried {beaten}none is seen to do worse. ")
    assert "* Better: `proximity` +" in said("e", recalled="1" * 288)
    assert "still beyond chance: `proximity` +" in said("e", recalled="1" * 288)
    assert said("e", recalled="0" * 288).startswith(f"None of the weightings tried {beaten}1 is seen to do worse. ")
    assert "* Worse: `proximity` −" in said("e", recalled="0" * 288)
    assert "*Known facts still recalled, against plain training.* Worse: `proximity` −" in said("g", recalled="0" * 288)
    plain = cells[PRIMARY, "plain", "steps", False]
    for sign, beginning in ((1, "Yes: among facts"), (-1, "No, rather the reverse: among facts")):
        expected = [
            one | {"start_transfer": [None if gain is None else sign * gain for gain in one["alone_versus_together"]]}
            for one in plain.results
        ]
        predicted = {(PRIMARY, "plain", "steps", False): replace(plain, results=tuple(expected))}
        assert answers(setting, predicted)[7].sentence.startswith(beginning)
    assert answers(setting, cells)[2].sentence.startswith("A fact ends less likely when trained together than after")
    for gain, beginning in (
        (lambda n: 1.0 + n % 2, "A fact gains with some numbers of facts and loses with others."),
        (
            lambda n: (-1.0) ** n,
            "A difference from learning alone is seen for some numbers of facts, and not for others.",
        ),
    ):
        gained = tuple(one | {"alone_versus_together": [gain(n) for n in range(288)]} for one in plain.results)
        smaller = replace(plain, block=setting.blocks["alone_16"], results=gained)
        crowd = answers(setting, {**cells, ("alone_16", "plain", "steps", False): smaller})[2]
        assert crowd.sentence.startswith(beginning)
    assert "This does not say whether more facts interfere more:" in crowd.sentence
    assert any(" facts, minus alone:* −" in one for one in crowd.points)
    assert {bar.num_comparisons for bar in crowd.bars} == {3}, "alone_16, alone_64 and primary are planned"

    assert {one.sentence for one in answers(setting, {})} == {"Not answered yet: the runs for it are missing."}
    few = answers(setting, {place: cell for place, cell in cells.items() if cell.arm == "plain"})
    assert [one.letter for one in few if one.sentence.startswith("Not answered yet")] == ["d", "e", "f"]


def test_a_verdict_names_what_is_beyond_its_interval_and_sums_up_the_rest():
    draws = np.random.default_rng(0).normal(size=10_000) * 0.01
    means = {"up": 0.1, "down": -0.1, "a": 0.001, "b": -0.002, "c": 0.003, "d": 0.0}
    found = compare({name: Sample(mean, draws + mean, 9, 5) for name, mean in means.items()})
    text = verdict(found, MEASURES["recalled"])
    assert text.startswith("Better: `up` +10.0 points [+")
    assert "]. Worse: `down` −10.0 points [−" in text
    assert "]. No difference seen: 4 arms, −0.2 to +0.3 points, all intervals within [−" in text
    assert verdict(found, MEASURES["nll"]).startswith("Better: `down` −0.10 nats [−")
    said = headline(found, MEASURES["recalled"], "arms", "the control")
    assert said == "1 of the 6 arms is seen to beat the control; 1 is seen to do worse."
    two = [one for one in found if one.label in ("a", "b")]
    assert headline(two, MEASURES["nll"], "arms", "it").startswith("Neither of the 2 arms is seen to beat it; neither")
    assert number(-0.0001, "%", signed=True) == "−0.0", "which side of 0 it is on"


def test_what_the_pages_say_in_their_own_words_is_what_the_files_say():
    pages = {path.stem: " ".join(path.read_text(encoding="utf-8").split()) for path in PAGE.parent.glob("*.md")}
    found = against_plain(load_cells(load_setting("cpu")), PRIMARY, "recalled")
    assert {one.label: one.sign for one in found if one.sign} == {"remoteness": -1, "middle": -1}
    said = "none beats plain training in recall. `Remoteness` did worse, and so did a `Band` around 0.8"
    assert said in pages["distance"]
    assert "none beats plain LoRA in recall" in (ROOT / "README.md").read_text(encoding="utf-8")
    costs = re.findall(r"\| [^|]+ \| (\S+ (?:%|nats) \[.*?\]) \|", pages["cost"])
    assert len(costs) == 4
    for cost in costs:
        assert re.sub(r" nats", "", cost) in re.sub(r" nats(?: per token)?", "", pages["study"])
    measured = re.findall(r"\| (\d+) \| (\d+) \| ([\d.]+) % (\[.*?\]) \|", pages["settings"])
    of_block = {("1", "12"): "rank_1", ("8", "8"): "short", ("8", "12"): "alone_64", ("8", "24"): "saturated"}
    of_block |= {("64", "12"): "rank_64"}
    results = results_path(load_setting("cpu")).read_text(encoding="utf-8")
    for rank, steps, share, interval in measured:
        (row,) = re.findall(rf"## Block `{of_block.pop((rank, steps))}`.*?^(\| plain .*?)$", results, re.M | re.S)
        assert f"| {share} {interval} " in row
    assert not of_block


def test_results_are_of_one_version_of_the_evaluation():
    """Another way of evaluating is another study: `STUDY_VERSION` has to be raised with it."""
    assert {execute.STUDY_VERSION: EVALUATION_VERSION} == {1: 2}


def test_a_slow_machine_begins_no_run_that_would_end_after_its_time(some_results, monkeypatch):
    setting, _ = some_results
    folder = ResultFolder(setting.results)
    ratios = [
        result["seconds"] / run.seconds(setting)
        for run in [*runs_of(setting, "tune"), *runs_of(setting, "report")]
        if (result := folder.read(run.name)) is not None
    ]
    assert execute.slowness_of(setting, folder) == pytest.approx(np.median(ratios))
    assert execute.slowness_of(replace(setting, results=Path("empty")), ResultFolder(Path("empty"))) == 1.0
    run = next(iter(runs_of(setting, "report")))
    order = Mock(run=run)
    deadline = time.monotonic() + 1.5 * run.seconds(setting)
    assert execute.execute(order, setting, deadline, slowness=2.0)[1] == "left for the next part"


def test_the_page_and_the_results_are_what_the_files_give():
    setting = load_setting("cpu")
    assert is_published(setting)
    cells = load_cells(setting)
    found = answers(setting, cells)
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_section(text, page_section(setting, cells, found), BEGIN)
    page = results_path(setting).read_text(encoding="utf-8")
    assert page == results_page(setting, cells, found, Path("study/cpu/plots"))
    assert with_section(text, "another\n", BEGIN) != text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--setting", "huge"], "`setting` must be one of cpu, gpu, smoke"),
        (["run", "--processes", "0"], "`processes` must be above 0"),
    ],
)
def test_bad_input_is_one_message(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err
