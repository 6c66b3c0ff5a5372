"""The speed benchmarks run, on a tiny model in one process, and refuse to compare what is not the same."""

import json
import math

import pytest
from experiments.benchmarks import (
    evaluation_speed,
    recipe_cost,
    roofline,
    scale,
    scoring_speed,
    training_contenders,
    training_speed,
)


@pytest.fixture
def in_one_process(monkeypatch):
    """The contenders train one after the other in this process; TRL is no dependency of the tests."""

    class Here:
        """A contender without a process of its own."""

        def __init__(self, name, contender, settings):
            self._contender, self._settings = contender, settings
            self._data = training_contenders.token_mean_facts(settings)

        def train(self, **order):
            return training_contenders.trained(self._contender, self._settings, self._data, **order)

        def stop(self):
            pass

    monkeypatch.setattr(training_speed, "Process", Here)
    monkeypatch.setattr(training_speed, "find_spec", lambda name: None)
    monkeypatch.setattr(roofline, "SIZE", 64)


def test_trainers_agree_on_the_first_step_and_are_compared(in_one_process, tiny_model, tmp_path, capsys):
    tiny = ["--base_model", str(tiny_model), "--facts", "world", "--num_facts", "12", "--micro_batch_size", "4"]
    training_speed.main(
        [*tiny, "--precision", "32-true", "--repetitions", "2", "--reuse_epochs", "2", "--output", str(tmp_path)]
    )
    result = json.loads((tmp_path / "training_speed_32-true.json").read_text())
    rows = result["contenders"]
    peers, upper = ["HF Trainer", "HF Trainer, tuned"], ["ours, upper half", "ours, upper half, reuse"]
    assert list(rows) == ["ours", "ours, padded", *peers, *upper]
    assert rows["ours"]["mean_loss"] == pytest.approx(rows["ours, padded"]["mean_loss"], rel=1e-5)
    assert "ours / ours, padded" in result["ratios"]
    assert max(row["first_step_loss"] for row in rows.values()) == pytest.approx(
        min(row["first_step_loss"] for row in rows.values()), rel=1e-4
    )
    assert rows["ours, upper half, reuse"]["mean_loss"] == pytest.approx(
        rows["ours, upper half"]["mean_loss"], rel=1e-5
    )
    assert rows["ours"]["mean_loss"] != pytest.approx(rows["ours, upper half"]["mean_loss"], rel=1e-4)
    assert all(len(row["facts_per_s"]) == 2 and row["peak_memory_gb"] > 0 for row in rows.values())
    gflop = {name: row["gflop_per_fact"] for name, row in rows.items()}
    assert gflop.pop("ours, upper half, reuse") is None
    assert min(gflop.values()) > 0
    assert gflop["ours, padded"] < gflop["HF Trainer"]  # whose logits are those of all positions
    assert training_speed.shares_of_peak(rows["ours, upper half, reuse"]) is None
    first = rows["ours"]["facts_per_s"][0] * gflop["ours"] / rows["ours"]["peak_gflops"][0]
    assert training_speed.shares_of_peak(rows["ours"])[0] == first > 0
    assert "ours / HF Trainer, tuned" in result["ratios"]
    assert result["provenance"]["versions"]["torch"]
    assert "ours / HF Trainer" in capsys.readouterr().out


def test_facts_whose_prompts_are_questions(in_one_process, tiny_model, tmp_path, monkeypatch):
    read = []
    once = training_speed.token_mean_facts
    monkeypatch.setattr(training_speed, "token_mean_facts", lambda one: read.append(once(one)) or read[-1])
    options = ["--base_model", str(tiny_model), "--facts", "world", "--num_facts", "6", "--micro_batch_size", "4"]
    options += ["--precision", "32-true", "--repetitions", "1", "--only", "ours", "ours, padded", "--questions"]
    training_speed.main([*options, "--output", str(tmp_path)])
    result = json.loads((tmp_path / "training_speed_32-true_questions_some.json").read_text())
    assert list(result["contenders"]) == ["ours", "ours, padded"]
    assert result["settings"]["facts"] == "world_questions.jsonl"
    prompts = [fact.prompt for fact in read[0].prepared.facts]
    assert prompts
    assert all(prompt.startswith("Question: ") and prompt.endswith("? Answer:") for prompt in prompts)


def test_some_contenders_never_replace_the_result_of_all(in_one_process, tiny_model, tmp_path, monkeypatch):
    tiny = ["--base_model", str(tiny_model), "--facts", "world", "--num_facts", "4", "--micro_batch_size", "4"]
    options = [*tiny, "--precision", "32-true", "--repetitions", "1", "--only", "ours", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["/somewhere/training_speed.py", *options])
    training_speed.main(options)
    assert [path.name for path in tmp_path.glob("*.json")] == ["training_speed_32-true_some.json"]
    result = json.loads((tmp_path / "training_speed_32-true_some.json").read_text())
    assert list(result["contenders"]) == ["ours"]
    assert result["provenance"]["command"].startswith(f"training_speed.py --base_model {tiny_model.name} --facts world")


def test_another_objective_is_not_compared(in_one_process, tiny_model, tmp_path, monkeypatch):
    train = training_contenders.train_hf
    monkeypatch.setattr(
        training_contenders,
        "train_hf",
        lambda *arguments, **order: training_speed.dataclasses.replace(train(*arguments, **order), loss=1.0),
    )
    with pytest.raises(SystemExit, match="losses of the same first step differ"):
        training_speed.main(["--base_model", str(tiny_model), "--num_facts", "4", "--precision", "32-true"])


def test_a_trainer_that_stops_early_is_not_compared(in_one_process, tiny_model, monkeypatch):
    train = training_contenders.train_hf
    monkeypatch.setattr(
        training_contenders, "train_hf", lambda *arguments, **order: train(*arguments, **{**order, "epochs": 1})
    )
    tiny = ["--base_model", str(tiny_model), "--facts", "world", "--num_facts", "12", "--micro_batch_size", "4"]
    with pytest.raises(SystemExit, match="HF Trainer took 3 steps instead of 6"):
        training_speed.main([*tiny, "--precision", "32-true"])


def test_online_weights_are_compared_with_given_ones(in_one_process, tiny_model, tmp_path, capsys):
    tiny = ["--base_model", str(tiny_model), "--facts", "world", "--num_facts", "8", "--micro_batch_size", "4"]
    training_speed.main([*tiny, "--online", "--repetitions", "2", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "online_weighting.json").read_text())
    given, online = (result["processor_seconds"][way] for way in ("given", "online"))
    assert len(given) == len(online) == 2
    assert result["added_by_online"]["max"] == pytest.approx(max(b / a - 1 for a, b in zip(given, online, strict=True)))
    assert "online weights add" in capsys.readouterr().out


def test_ratios_are_paired():
    rows = {"ours": {"facts_per_s": [4.0, 9.0, 2.0]}, "HF Trainer": {"facts_per_s": [2.0, 3.0, 2.0]}}
    rows |= {name: {"facts_per_s": [1.0, 1.0, 1.0]} for name in ("ours, upper half", "ours, upper half, reuse")}
    assert training_speed.ratios(rows)["ours / HF Trainer"] == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_scoring_is_compared_on_the_same_numbers(tiny_model, tmp_path, monkeypatch):
    tiny = ["--base_model", str(tiny_model), "--facts", "world", "--num_facts", "12", "--batch_size", "4"]
    arguments = [*tiny, "--repetitions", "2", "--output", str(tmp_path)]
    scoring_speed.main(arguments)
    result = json.loads((tmp_path / "scoring_speed.json").read_text())
    assert result["largest_disagreement"] < 1e-5
    assert set(result["ratios"]) == {"ours / ours, trees", "ours / bare forward", "ours / plain loop"}
    assert len(result["cached_setup_seconds"]) == 2
    wrong = scoring_speed.plain_loop
    monkeypatch.setattr(
        scoring_speed, "plain_loop", lambda *args: {fact: (d + 0.1, n, r) for fact, (d, n, r) in wrong(*args).items()}
    )
    with pytest.raises(SystemExit, match="ours and the plain loop differ"):
        scoring_speed.main(arguments)


def test_scale_measures_each_stage_and_fits_an_exponent():
    result = scale.measure([50, 200], run=scale.timed)
    assert [(row["stage"], row["num_facts"]) for row in result["rows"]] == [
        ("filter", 50),
        ("filter", 200),
        ("plan", 50),
        ("plan", 200),
        ("trees", 50),
        ("trees", 200),
    ]
    assert all(row["seconds"] > 0 and row["peak_memory_gb"] > 0 for row in result["rows"])
    rows = [{"stage": "filter", "num_facts": 10**n, "seconds": 3.0 * 10 ** (1.5 * n)} for n in (2, 3, 4)]
    assert scale.exponent(rows, "filter") == pytest.approx(1.5)
    assert scale.exponent(rows[:1], "filter") is None
    assert math.isfinite(result["exponent"]["plan"])


def test_evaluation_is_timed_by_part_and_generation_on_the_same_answers(tiny_model, tmp_path, monkeypatch):
    tiny = ["--base_model", str(tiny_model), "--num_facts", "6", "--doubt_turns", "1", "--generation_prompts", "8"]
    arguments = [*tiny, "--repetitions", "2", "--output", str(tmp_path)]
    evaluation_speed.main(arguments)
    result = json.loads((tmp_path / "evaluation_speed.json").read_text())
    asked, doubted = 6 * (1 + 3 + 2), 6 * 2 * 2
    assert [row["questions_of_each_side"] for row in result["parts"]][:2] == [asked, doubted]
    for row in result["parts"]:
        padded, trees = ([one["processor_seconds"] for one in row[way]] for way in ("padded", "trees"))
        assert len(padded) == len(trees) == 2
        assert row["trees_faster_by"]["max"] == max(a / b for a, b in zip(padded, trees, strict=True)) > 0
    assert result["generation"]["prompts"] == 8
    greedy = evaluation_speed.greedy_answers

    def wrong_alone(*positional, batch_size, **named):
        return [ids[: len(ids) if batch_size > 1 else 1] for ids in greedy(*positional, batch_size=batch_size, **named)]

    monkeypatch.setattr(evaluation_speed, "greedy_answers", wrong_alone)
    with pytest.raises(SystemExit, match="answers differ between batches and one prompt at a time"):
        evaluation_speed.main(arguments)


def test_what_a_step_of_the_recipe_costs(tiny_model, tmp_path, monkeypatch):
    """Every arm trains, and the medians are those of its repetitions."""
    monkeypatch.setattr(recipe_cost.torch, "set_num_threads", lambda _: None)  # the threads of the tests are theirs
    monkeypatch.setattr(
        recipe_cost, "_in_process", lambda arm, given: recipe_cost.measured(arm, given.base_model, given.num_steps)
    )
    settings = ["--num_steps", "6", "--repetitions", "1", "--output", str(tmp_path)]
    recipe_cost.main(["--base_model", str(tiny_model), *settings])
    result = json.loads((tmp_path / "recipe_cost.json").read_text())
    assert list(result["medians"]) == ["plain_padded", "plain", "recipe_padded", "recipe"]
    for arm, median in result["medians"].items():
        (one,) = result["results"][arm]
        assert median == {name: round(value, 3) for name, value in one.items()}
        assert one["step_cpu_seconds"] > 0
        assert one["peak_gb"] >= one["peak_gb_before"] > 0
