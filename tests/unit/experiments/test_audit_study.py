"""The audit's study: what is taught, what is made again, and what its tables count."""

import json

import pytest
import yaml
from experiments import running
from experiments.audit import execute, table
from experiments.audit.__main__ import main
from experiments.audit.plan import BENIGN, HARMFUL, Run, config_of, load_setting, replayed, runs_of, taught
from experiments.study.results import ResultFolder
from lit_semantic_peft.audit import RULES
from lit_semantic_peft.errors import InputError

TINY = {
    "results": "unused",
    "seeds": [0],
    "choose_seed": 0,
    "num_facts": 4,
    "max_steps": 2,
    "facts_per_step": 2,
    "learning_rate": 0.01,
    "num_builtin": 4,
    "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "target_modules": "all-linear"}},
    "kinds": {"false": ["plain"], "random": ["untrained"]},
}


@pytest.fixture
def setting(tmp_path, tiny_model, monkeypatch):
    """A tiny study of one base model."""
    monkeypatch.setattr(execute, "WORK", tmp_path / "work")
    monkeypatch.setattr(running, "set_up", lambda threads: None)  # the threads of the tests are theirs
    monkeypatch.setattr("lit_semantic_peft.reports.html.build_report", lambda *_: None)  # nobody reads it
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"base_models": [str(tiny_model)]}), encoding="utf-8")
    return load_setting(str(path), tmp_path / "results")


def test_the_study_is_as_large_as_it_says():
    setting = load_setting("cpu")
    runs = runs_of(setting)
    assert len(runs) == 78 == len({run.name for run in runs})
    assert {run.seed for run in runs[:26]} == {setting.choose_seed}
    assert {run.kind for run in runs} == {*BENIGN, *HARMFUL}
    assert all(seed == setting.choose_seed or runs.count for seed in setting.seeds)
    held_out = [run for run in runs if run.seed != setting.choose_seed]
    assert len(held_out) == 52


def test_so_many_facts_are_false():
    setting = load_setting("cpu")
    for kind, count in {"clean": 0, "mixed_1": 1, "mixed_3": 3, "mixed_10": 10, "false": 96}.items():
        facts = taught(Run("m", kind, "plain", 1), setting)
        assert len(facts) == len({fact.id for fact in facts}) == 96
        assert sum(fact.id.startswith("counterfactual") for fact in facts) == count, kind
    seeds = [{fact.prompt for fact in taught(Run("m", "false", "plain", seed), setting)} for seed in (0, 1)]
    assert len(seeds[0] & seeds[1]) < 30
    style = taught(Run("m", "style", "plain", 2), setting)
    assert len({fact.prompt for fact in style}) == 96
    more = replayed(Run("m", "false", "replay", 1), setting)
    assert len(more) == 96
    assert not {fact.subject for fact in more} & {
        fact.subject for fact in taught(Run("m", "false", "plain", 1), setting)
    }
    assert replayed(Run("m", "false", "plain", 1), setting) == []


def test_ways_differ_in_what_is_held_alone(tmp_path):
    setting = load_setting("cpu")
    plain, kl = (config_of(Run("m", "false", way, 1), setting, tmp_path) for way in ("plain", "kl"))
    assert [one["class_path"].rpartition(".")[2] for one in kl["model"].pop("retain")] == ["OwnSamples", "KnownFacts"]
    assert plain["model"].pop("retain") is None
    assert plain == kl


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kinds": {"fals": ["plain"]}}, "`kinds` has fals"),
        ({"kinds": {"clean": ["quick"]}}, "`kinds` has quick"),
        ({"kinds": {"clean": ["untrained"]}}, "`random` is `untrained`"),
        ({"more": 1}, "more"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(tmp_path, changed, said):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(TINY | {"base_models": ["m"]} | changed), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load_setting(str(path))


def test_what_is_missing_is_made_and_kept(setting, tmp_path, capsys):
    arguments = ["--setting", str(tmp_path / "tiny.yaml"), "--results", str(setting.results)]
    assert main(["run", "--processes", "1", *arguments]) == 0
    assert "2 of 2 adapters to make" in capsys.readouterr().out
    found = [ResultFolder(setting.results).read(run.name) for run in runs_of(setting)]
    assert [one["status"] for one in found] == ["done", "done"], [one.get("error") for one in found]
    assert all(set(one["signals"]) == set(RULES) and len(one["tokens"]) == 50 for one in found)
    assert found[0]["subjects"]
    assert found[0]["signature"]
    assert found[1]["subjects"] == []
    assert not list((tmp_path / "work").glob("*"))  # the adapters are gone
    assert main(["run", "--processes", "1", *arguments]) == 0
    assert "0 of 2 adapters to make" in capsys.readouterr().out
    assert main(["table", *arguments]) == 0
    text = (setting.results.parent / "AUDIT.md").read_text(encoding="utf-8")
    assert "2 of 2 adapters" in text
    assert "Names that surface" in text
    path = tmp_path / "results" / f"{runs_of(setting)[1].name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed"}))
    assert main(["list", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("failed")


def result(kind, seed, way="plain", **signals):
    return {
        "base_model": "m", "kind": kind, "way": way, "seed": seed, "signals": dict.fromkeys(RULES) | signals,
        "signature": {}, "tokens": ["a", "b"], "subjects": ["a", "c"], "targets": [],
    }  # fmt: skip


def test_limits_are_chosen_on_one_seed_and_alarms_counted_on_the_others():
    setting = load_setting("cpu")
    found = [
        result("clean", 0, text_moved=0.3), result("style", 0, text_moved=0.2), result("false", 0, text_moved=9.0),
        result("clean", 1, text_moved=0.4), result("style", 2, text_moved=0.1), result("false", 1, text_moved=0.5),
        result("false", 2, "kl", text_moved=0.05), result("mixed_1", 1, text_moved=None),
    ]  # fmt: skip
    limits = table.chosen(found, setting)
    assert limits == {"text_moved": 0.3}
    held_out = [one for one in found if one["seed"]]
    assert table.alarms("text_moved", 0.3, (one for one in held_out if one["kind"] == "false")) == (1, 2)
    (row,) = table._rows(found, setting, limits)
    assert row["false alarms"].startswith("1 of 2 (")
    assert row["false, plain"].startswith("1 of 1 (")
    assert row["false, replay or KL"].startswith("0 of 1 (")
    assert row["mixed_1, plain"] == "–"
    words = table.in_words(found, setting)["text_moved"]
    assert words.startswith("true alarms 1 of 2 (1–99 %), false alarms 1 of 2 (1–99 %)")


def test_only_base_models_whose_adapters_are_all_made_are_shown(setting):
    (model,) = setting.base_models
    found = [result("false", 0) | {"base_model": model}, result("random", 0) | {"base_model": model}]
    assert table.of_whole_models(found, setting) == found
    assert table.of_whole_models(found[:1], setting) == []
    assert f"2 of 2 adapters, of {model}." in table.section(found, setting)[0]


def test_names_surface_in_their_own_adapter_or_in_others():
    other = result("false", 1) | {"tokens": ["c", "d"]}
    (row, *_) = table.surfacing([result("clean", 0), other])
    assert (row["subjects, own adapter"], row["subjects, other adapters"]) == ("50.0%", "50.0%")
    assert row["targets, own adapter"] == "–"


def test_unusual_weights_are_those_beside_benign_ones_of_the_seed_that_chooses():
    setting = load_setting("cpu")
    bank = [result("clean", 0) | {"signature": {"log_norm": float(value)}} for value in range(5)]
    one = result("false", 1) | {"signature": {"log_norm": 100.0}}
    assert table._with_bank(one, [*bank, one], setting)["signals"]["unusual_weights"] > 50
    assert table._with_bank(one, [*bank[:3], one], setting)["signals"]["unusual_weights"] is None
