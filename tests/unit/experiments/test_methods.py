"""A recipe per method: each trains as it is, and the comparison of them runs, goes on and is shown."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from experiments.methods import execute, facts, table
from experiments.methods.__main__ import main
from experiments.methods.plan import HERE, Run, adapter_of, config_of, load_setting, method_names, runs_of, stated_rate
from experiments.methods.rates import learned
from experiments.study.facts import role_of
from experiments.study.results import ResultFolder
from lit_semantic_peft.__main__ import main as command
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import given_facts
from transformers import LlamaConfig, LlamaForCausalLM

from fixtures.models import byte_level_bpe

TINY = {
    **{"results": "unused", "accelerator": "cpu", "facts_per_step": 4, "num_known": 3, "seeds": [0]},
    **{"num_facts": {"choose": 4, "report": 4}, "num_steps": {"choose": 3, "report": 3}},
}
FAMILIES = {
    *("lora", "dora", "rslora", "adalora", "ia3", "oft", "boft", "loha", "lokr", "vera", "fourierft", "hra"),
    *("ln_tuning", "prompt", "prefix", "p_tuning", "trainable_tokens", "flora"),
}
# Of each way to adapt one; the types of adapters are tested one by one in `unit/models`.
DIFFERENT = {
    "lora",
    "dora",
    "adalora",
    "ia3",
    "oft",
    "loha",
    "vera",
    "fourierft",
    "ln_tuning",
    "prompt",
    "prefix",
    "flora",
}


@pytest.fixture(scope="session")
def narrow_smollm2(tmp_path_factory):
    """Two layers whose widths have the divisors of SmolLM2's, which block sizes must divide."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "narrow", byte_level_bpe()
    sizes = {"hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 3, "num_key_value_heads": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, tie_word_embeddings=True, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def setting(tmp_path, narrow_smollm2, monkeypatch):
    """A tiny comparison on a base model that knows some facts of a pool by decree."""
    monkeypatch.setattr(execute, "WORK", tmp_path / "work")
    monkeypatch.setattr(execute, "side_by_side", lambda function, calls, *_, **__: (function(*one) for one in calls))
    monkeypatch.setattr("lit_semantic_peft.reports.html.build_report", lambda *_: None)  # nobody reads it
    world = [fact for fact in given_facts("world") if fact.relation in ("capital", "currency")]
    monkeypatch.setattr(facts, "pool_of", lambda *_: (world[0::2], world[1::2]))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"base_model": str(narrow_smollm2)}), encoding="utf-8")
    return load_setting(str(path), tmp_path / "results")


def test_every_family_has_a_recipe():
    assert set(method_names()) >= FAMILIES
    assert method_names()[0] == "lora"
    assert set(method_names()) >= DIFFERENT


@pytest.mark.parametrize(
    "method", [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.long) for name in method_names()]
)
def test_a_recipe_trains_as_it_is(method, narrow_smollm2, facts_file, shared_cache):
    """All but the base model, the facts and the length, which are a user's own."""
    text = (HERE / f"{method}.yaml").read_text(encoding="utf-8")
    assert f"lit-semantic-peft fit --config experiments/methods/{method}.yaml" in text
    recipe = yaml.safe_load(text)
    assert recipe["trainer"]["default_root_dir"] == f"runs/methods/{method}"
    recipe["model"] = {
        "base_model": str(narrow_smollm2),
        "peft_config": adapter_of(method, num_steps=6),
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": stated_rate(method)}},
    }
    if method == "adaption_prompt":
        recipe["model"]["peft_config"]["init_args"]["adapter_layers"] = 2
    recipe["data"] |= {"facts": str(facts_file), "num_facts": 8, "selection": {}}
    recipe["trainer"] = {"accelerator": "cpu", "max_steps": 6, "enable_progress_bar": False}
    found = learned({"seed_everything": 0, **{name: recipe[name] for name in ("model", "data", "trainer")}})
    assert found["num_steps"] == 6
    assert found["num_parameters"] > 0
    assert found["nll_after"] < found["nll_before"], "nothing was learned"
    assert math.isfinite(found["nll_after"])


@pytest.mark.parametrize("method", ["flora", "ia3"])
def test_a_recipe_is_a_configuration_of_fit(method, narrow_smollm2, shared_cache, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    small = ["--data.num_facts=4", "--data.selection.filters=null", "--data.evaluation.retention=false"]
    given = [f"--config={HERE / method}.yaml", f"--model.base_model={narrow_smollm2}", *small]
    length = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--interference.num_facts=0"]
    assert command(["fit", *given, *length]) == 0
    assert Path(f"runs/methods/{method}/adapter/adapter_config.json").is_file()


def test_what_depends_on_the_training_is_fitted_to_it():
    ada = adapter_of("adalora", 24)["init_args"]
    assert (ada["total_step"], ada["tinit"], ada["tfinal"]) == (24, 4, 8)
    assert adapter_of("trainable_tokens", 24, [7, 9])["init_args"]["token_indices"] == [7, 9]
    assert "token_indices" not in adapter_of("lora", 24, [7, 9])["init_args"]
    with pytest.raises(InputError, match="the methods are lora, adalora"):
        adapter_of("nonsense", 24)


def test_facts_of_a_subject_choose_or_are_reported(setting, tmp_path):
    read = {role: facts.facts_of(role, setting, tmp_path) for role in ("choose", "report")}
    for role, (file, token_ids) in read.items():
        found = given_facts(str(file.path))
        taught = [fact for fact in found if fact.split == "inject"]
        assert (len(taught), len(found)) == (4, 7)
        assert {role_of(fact) for fact in found} == {{"choose": "tune"}.get(role, role)}
        assert all(len(fact.paraphrases) == 1 for fact in taught)
        assert token_ids == sorted(set(token_ids))
    assert read["choose"][1] != read["report"][1]


def test_methods_differ_in_adapter_and_rate_alone(setting):
    one, other = (
        config_of(Run(name, "report", 0, stated_rate(name)), setting, Path("f.jsonl"), []) for name in ("lora", "ia3")
    )
    assert one["model"].pop("peft_config") != other["model"].pop("peft_config")
    assert (one["model"].pop("optimizer")["init_args"]["lr"], other["model"].pop("optimizer")["init_args"]["lr"]) == (
        2e-3,
        5e-2,
    )
    assert one == other


def test_a_comparison_from_start_to_end(setting, capsys):
    assert execute.run_methods(setting, ["lora", "adalora"], [], 1, None, print) == 0
    results = ResultFolder(setting.results)
    for run in runs_of(setting, ["lora", "adalora"]):
        found = results.read(run.name)
        assert found["status"] == "done", found
        assert (found["num_steps"], len(found["recalled"]), len(found["paraphrases"])) == (3, 4, 4)
        assert found["num_parameters"] > 0
    assert execute.missing(runs_of(setting, ["lora", "adalora"]), setting) == []
    assert execute.run_methods(setting, ["lora"], [1e-3], 1, None, print) == 0
    assert "report/adalora-0: done" in capsys.readouterr().out
    text = table.write_table(setting).read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `adalora` .*\|$", text, re.MULTILINE)
    assert row.split("|")[-2].strip() == "1"
    assert re.search(r"^\| `lora` \| 0\.001 \|", text, re.MULTILINE)


def test_a_failed_or_outdated_run_is_run_again(setting, monkeypatch):
    run = runs_of(setting, ["lora"])[0]
    results = ResultFolder(setting.results)
    (order,) = execute.missing([run], setting)
    for kept, is_missing in (
        ({"status": "failed", "key": order.key}, True),
        ({"status": "done", "key": "of another time"}, True),
        ({"status": "done", "key": order.key}, False),
    ):
        results.write(run.name, kept)
        assert bool(execute.missing([run], setting)) == is_missing
    monkeypatch.setattr(execute, "METHODS_VERSION", -1)
    assert execute.missing([run], setting)


def test_bad_input(capsys):
    for arguments, said in (
        (["run", "--setting=nowhere"], "cpu, smoke"),
        (["run", "--only", "loora"], "got loora"),
        (["rates", "--rates", "-1"], "`rates` must be above 0"),
        (["run", "--processes=0"], "`processes` must be above 0"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


def test_the_settings_are_read():
    for name in ("cpu", "smoke"):
        assert load_setting(name).seeds
