"""The recipe's study: what is taught and asked, what is run again, and what its tables say."""

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import yaml
from experiments import running
from experiments.recipe_study import execute, facts, overview, table
from experiments.recipe_study.__main__ import main
from experiments.recipe_study.plan import CHOOSE_SEED, config_of, load_setting, runs_of
from experiments.study.facts import StudyFacts
from experiments.study.results import ResultFolder
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import given_facts

TINY = {
    "results": "unused",
    "accelerator": "cpu",
    "facts_per_step": 4,
    "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "target_modules": "all-linear"}},
    "relations": {"choose": ["capital"], "report": ["currency"]},
    "num_facts": {"real": 4},
    "num_known": 3,
    "seeds": [0, 1],
    "ways": {
        "plain": {"is_recipe": False, "steps": 0.02},
        "recipe": {
            "is_recipe": True,
            "steps": 0.02,
            "refines": True,
            "config": {"model": {"retain": []}},
        },
        "plain_gated": {
            "is_recipe": False,
            "steps": 0.1,
            "config": {"model": {"gate": {"class_path": "lit_semantic_peft.adapters.SubjectGate"}}},
        },
        "held_only": {"is_recipe": True, "steps": 0.02, "config": {"data": {"forms": {"sources": []}}}},
    },
    "tried": {"recipe": {"is_recipe": True, "steps": 0.02, "config": {"model": {"retain": []}}}},
}


@pytest.fixture
def setting(tmp_path, tiny_model, monkeypatch):
    """A tiny study of one base model, which knows some facts of a pool by decree."""
    monkeypatch.setattr(execute, "WORK", tmp_path / "work")
    monkeypatch.setattr(running, "set_up", lambda threads: None)  # the threads of the tests are theirs
    monkeypatch.setattr("lit_semantic_peft.reports.html.build_report", lambda *_: None)  # nobody reads it
    world = [fact for fact in given_facts("world") if fact.relation in ("capital", "currency")]
    monkeypatch.setattr(facts, "pool_of", lambda *_: (world[0::2], world[1::2]))
    texts = tmp_path / "texts.txt"
    texts.write_text("One passage.\n\nAnother one.\n", encoding="utf-8")
    monkeypatch.setattr(execute, "texts_of", lambda role, folder: StudyFacts(texts, "texts"))
    path = tmp_path / "tiny.yaml"
    described = TINY | {"models": [{"name": str(tiny_model), "rates": [1e-3, 1e-2], "tried": ["recipe"]}]}
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return load_setting(str(path), tmp_path / "results")


def test_every_way_is_asked_the_same_paraphrases(setting):
    """Also one that teaches own prompts only: the others' last paraphrase is asked, not all of them."""
    asked = {}
    for run in runs_of(setting, "report"):
        path = execute.order_of(run, setting, 1e-3).config["data"]["facts"]
        found = [fact.paraphrases for fact in given_facts(path) if fact.split == "inject"]
        asked[run.way.name] = [texts[-1:] for texts in found]
        assert any(len(texts) > 1 for texts in found) == run.way.teaches_forms == (run.way.name == "recipe")
    assert asked["plain"] == asked["recipe"] == asked["held_only"]
    assert all(asked["plain"])


def test_a_routed_adapter_is_asked_what_is_known_of_the_taught_subjects(setting):
    of_subjects = {}
    for run in runs_of(setting, "report"):
        read = given_facts(execute.order_of(run, setting, 1e-3).config["data"]["facts"])
        taught = {fact.subject for fact in read if fact.split == "inject"}
        of_subjects[run.way.name] = [fact.id for fact in read if fact.split == "probe" and fact.subject in taught]
    assert of_subjects.pop("plain_gated")
    assert not any(of_subjects.values())


def test_facts_that_choose_and_facts_that_are_reported_share_nothing(setting, tmp_path):
    files = {role: facts.facts_of("real", role, "m", setting, tmp_path) for role in ("choose", "report")}
    read = {role: given_facts(str(one.path)) for role, one in files.items()}
    for role, relation in (("choose", "capital"), ("report", "currency")):
        taught = [fact for fact in read[role] if fact.split == "inject"]
        asked = [fact for fact in read[role] if fact.split == "probe"]
        assert {fact.relation for fact in read[role]} == {relation}
        assert (len(taught), len(asked)) == (4, 3)
        assert not {fact.subject for fact in taught} & {fact.subject for fact in asked}
        assert all(len(fact.paraphrases) == 3 and fact.question for fact in taught)
        assert not any(fact.paraphrases for fact in asked)
    plain = facts.facts_of("real", "report", "m", setting, tmp_path, with_forms=False)
    last = [fact.paraphrases[-1:] for fact in read["report"]]
    assert [fact.paraphrases for fact in given_facts(str(plain.path))] == last


def test_reworded_facts_are_those_that_choose_with_further_wordings_to_ask(setting, tmp_path, monkeypatch):
    wordings = tmp_path / "wordings.yaml"
    wordings.write_text("capital: ['{subject} is ruled from', 'Who rules {subject} lives in']\n", encoding="utf-8")
    monkeypatch.setattr(facts, "OTHER_WORDINGS", wordings)
    for with_forms in (True, False):
        taught = {
            kind: [
                fact
                for fact in given_facts(
                    str(facts.facts_of(kind, "choose", "m", setting, tmp_path, with_forms=with_forms).path)
                )
                if fact.split == "inject"
            ]
            for kind in ("real", "reworded")
        }
        assert [fact.id for fact in taught["real"]] == [fact.id for fact in taught["reworded"]]
        for real, reworded in zip(taught["real"], taught["reworded"], strict=True):
            further = (f"{real.subject} is ruled from", f"Who rules {real.subject} lives in")
            assert reworded.paraphrases == (*real.paraphrases, *further)


def test_each_relation_has_further_wordings_which_are_not_among_its_own():
    published = load_setting("cpu")
    wordings = yaml.safe_load(facts.OTHER_WORDINGS.read_text(encoding="utf-8"))
    assert published.relations is not None
    assert set(wordings) == {one for role in ("choose", "report") for one in published.relations[role]}
    for fact in given_facts("world"):
        further = {one.format(subject=fact.subject) for one in wordings.get(fact.relation or "", ())}
        assert not further & {fact.prompt, *fact.paraphrases}
    taught = {
        name: way.config["data"]["forms"]["from_paraphrases"]
        for name, way in published.tried.items()
        if name.startswith("reworded") and way.teaches_forms and way.config
    }
    assert set(taught.values()) == {2}  # of three built-in paraphrases one, and all further wordings, are asked


def test_too_few_facts_are_an_error(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "pool_of", lambda *_: ([], []))
    with pytest.raises(InputError, match=r"4 real facts to choose, but m leaves 0 unknown"):
        facts.facts_of("real", "choose", "m", setting, tmp_path)


def test_ways_differ_in_what_they_are_alone(setting):
    plain, _, recipe = runs_of(setting, "choose")
    ours, theirs = (
        config_of(run, setting, Path("facts.jsonl"), Path("texts.txt"), 96, 16, rate)
        for run, rate in ((recipe, None), (plain, 1e-3))
    )
    assert (ours["recipe"], theirs["recipe"]) == ("auto", "plain")
    assert theirs["model"]["optimizer"]["init_args"]["lr"] == 1e-3
    for section, keys in (("model", {"optimizer", "retain"}), ("data", {"forms"})):
        assert {key for key in theirs[section] if theirs[section][key] != ours[section].get(key)} <= keys
    assert ours["trainer"] == theirs["trainer"]
    reported = next(run for run in runs_of(setting, "report") if run.way.refines)
    config = config_of(reported, setting, Path("facts.jsonl"), Path("texts.txt"), 400, 100, None)
    assert (config["trainer"]["max_steps"], config["refine"]) == (6, 2)  # a fiftieth of 400, and of 100
    assert {run.seed for run in runs_of(setting, "choose")} == {CHOOSE_SEED}


def test_a_study_from_start_to_end(setting, monkeypatch, capsys):
    assert execute.run_all(setting, 1, None) == 0
    results = ResultFolder(setting.results)
    for run in [*runs_of(setting, "choose"), *runs_of(setting, "report")]:
        found = results.read(run.name)
        assert found["status"] == "done", found
        steps = max(1, round(96 * run.way.steps))
        assert (found["num_steps"], len(found["recalled"]), len(found["text_nll_delta"])) == (steps, 4, 2)
        assert set(map(type, found["paraphrases"])) == {float}
        assert bool(found["known_of_subjects_id"]) <= (run.way.name == "plain_gated")
        is_untouched = found["text_nll_delta"] == [0.0, 0.0]
        assert is_untouched == (run.way.name == "plain_gated"), "no passage names a taught subject"
    assert execute.pending(setting, results) == []
    path = table.write_tables(setting)
    text = path.read_text(encoding="utf-8")
    assert "held-out words" in text
    assert (path.parent / "frontier.png").is_file()


@pytest.mark.parametrize(
    ("paraphrases", "text", "expected"),
    [
        (([1, 1, 0, 0], [1, 1, 1, 1]), (0.1, 3.0), 1e-2),
        (([1, 1, 1, 0], [1, 1, 1, 1]), (0.1, 3.0), 1e-2),
        (([1, 1, 1, 0], [1, 1, 1, 0]), (0.1, 3.0), 1e-3),  # the one that costs less
    ],
)
def test_the_rate_of_plain_training(setting, paraphrases, text, expected):
    results = ResultFolder(setting.results)
    for run, answers, lost in zip(runs_of(setting, "choose"), paraphrases, text, strict=False):
        results.write(run.name, {"status": "done", "paraphrases": answers, "text_nll_delta": [lost]})
    run = next(run for run in runs_of(setting, "report") if not run.way.is_recipe)
    assert execute.plain_rate(run, setting, results) == expected


def test_without_its_choice_nothing_is_reported(setting):
    waiting = execute.pending(setting, ResultFolder(setting.results))
    assert {order.run.role for order in waiting if not order.run.way.is_recipe} == {"choose"}


def test_means_and_paired_differences():
    plain, ours = (
        [{"seed": seed, "recalled": row, "text_nll_delta": text} for seed, row, text in rows]
        for rows in (
            ((0, [1, 0, 0, 0], [2.0, 4.0]), (1, [1, 1, 0, 0], [3.0, 3.0])),
            ((1, [1, 1, 1, 0], [0.0, 1.0]), (2, [1, 1, 1, 1], [0.0, 0.0])),
        )
    )
    recalled, text = table.MEASURES["recalled"], table.MEASURES["text_nll_delta"]
    assert table.mean_of(plain, recalled).value == fmean([1, 0, 0, 0, 1, 1, 0, 0])
    assert table.mean_of(plain, text).value == 3.0
    paired = table._paired(ours, plain, recalled)
    assert (paired.value, paired.num_seeds) == (0.25, 1), "only the seed that both have"
    assert table._paired(ours, plain, text).value == -2.5
    assert np.isnan(table.mean_of([{"recalled": []}], recalled).value)


def test_bounds_are_judged_by_their_direction():
    text, known = table.Bound("text_nll_delta", 0.05), table.Bound("known", 0.25, beyond_plain=True)
    assert (text.is_met(0.04), text.is_met(0.06)) == (True, False)
    assert (known.is_met(0.26), known.is_met(0.24)) == (True, False)
    assert str(known) == "other known facts kept: at least 25.0 above plain"


@pytest.mark.parametrize(
    ("values", "limit", "said"),
    [
        ([[1.0] * 40], 0.5, "yes"),
        ([[1.0] * 21 + [0.0] * 19], 0.5, "in the mean, not beyond chance"),
        ([[1.0] * 19 + [0.0] * 21], 0.5, "**no**"),
    ],
)
def test_a_bound_is_met_by_the_whole_interval_or_in_the_mean(values, limit, said):
    measured = table.MEASURES["known"].of(np.array(values))
    assert table.Bound("known", limit).judged(measured) == said


def test_a_neighbour_that_facts_share_is_one_of_the_draws(monkeypatch):
    """Forty facts that share twenty neighbours have the interval of twenty, which is wider than that of forty."""
    ids = [f"f{number}" for number in range(40)]
    monkeypatch.setattr(table, "_neighbour_of", lambda: {one: f"n{number // 2}" for number, one in enumerate(ids)})
    values = [float(number // 2 % 2) for number in range(40)]
    found = [{"fact_id": ids, "neighbours": values, "recalled": values}]
    neighbours, recalled = (table.mean_of(found, table.MEASURES[name]) for name in ("neighbours", "recalled"))
    assert neighbours.value == recalled.value == 0.5
    widths = [high - low for low, high in (neighbours.interval(), recalled.interval())]
    assert widths[0] / widths[1] == pytest.approx(2**0.5, rel=0.15)


def test_the_neighbours_of_the_facts_are_known():
    known = table._neighbour_of()
    assert any(list(known.values()).count(prompt) > 1 for prompt in list(known.values())[:50])
    assert all(fact.id in known for fact in given_facts(str(facts.INVENTED["report"])) if fact.neighborhood)


def test_unknown_settings_end_with_an_error(tmp_path, capsys):
    path = tmp_path / "odd.yaml"
    path.write_text(json.dumps({**TINY, "models": [], "size": 3}), encoding="utf-8")
    for name, said in (("huge", "must be one of cpu"), (str(path), "size")):
        assert main(["list", "--setting", name]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("texts", "said"), [([[0.1, 0.3]], "+0.20 [one seed]"), ([[0.1], [0.3]], "+0.20 [")])
def test_one_seed_has_no_interval_over_seeds(texts, said):
    found = [{"text_nll_delta": one} for one in texts]
    told = table._row([{"fact_id": ["f"]} | {name: [1.0] for name in table.MEASURES} | one for one in found])[
        "unrelated text, nats"
    ]
    assert told.startswith(said)
    assert "inf" not in told


def test_the_docs_show_what_the_results_say():
    setting = load_setting("cpu")
    page = overview.PAGE.read_text(encoding="utf-8")
    for section, lines in overview.sections(setting).items():
        assert f"{overview.mark(section)}\n\n" + "\n".join(lines) in page, section


def test_recall_by_relation():
    found = [
        {"fact_id": ["a", "b", "c"], "paraphrases": [1.0, 0.0, 1.0]},
        {"fact_id": ["a", "b", "c"], "paraphrases": [0.0, None, 1.0]},
    ]
    relations = {"a": "capital", "b": "capital", "c": "currency"}
    assert overview._mean_of_relation(found, "paraphrases", "capital", relations) == pytest.approx(1 / 3)
    assert overview._mean_of_relation(found, "paraphrases", "currency", relations) == 1.0
