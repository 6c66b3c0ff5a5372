"""The commands as a user types them, on a tiny model: what they leave behind and what they say."""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.cli.trainer import KnowledgeTrainer
from lit_semantic_peft.facts import read_facts
from lit_semantic_peft.reports import RunFolder, html
from lit_semantic_peft.terminal import visible
from lit_semantic_peft.training import SemanticPeftModule

from fixtures.models import save_tiny_model

SMALL = [
    "--trainer.max_epochs=2",
    "--recipe=plain",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--interference.num_facts=6",
    "--interference.final_facts=6",
]
ONLY_FACTS = ["--data.evaluation.probes=[]", "--data.evaluation.retention=false"]


@pytest.fixture(autouse=True)
def _own_arguments(shared_cache, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])


@pytest.fixture
def settings(tiny_model, facts_file) -> list[str]:
    return [
        f"--model.base_model={tiny_model}",
        f"--data.facts={facts_file}",
        "--data.batches.micro_batch_size=4",
        *SMALL,
    ]


def step_of(checkpoint: str) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_fit_makes_the_report_once(settings, monkeypatch):
    made, build_report = [], html.build_report
    monkeypatch.setattr(html, "build_report", lambda *given: made.append(build_report(*given)) or made[-1])
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/one"]) == 0
    assert made == [RunFolder("runs/one").paths.report]


def test_fit_leaves_a_whole_run_folder(settings, capsys, drawn_plots):
    status = main(
        [
            "fit",
            *settings,
            "--trainer.default_root_dir=runs/one",
            "--data.selection.filters="
            "[{class_path: lit_semantic_peft.semantics.BandFilter, init_args: {max_quantile: 0.7}}]",
        ]
    )
    assert status == 0, capsys.readouterr().err
    folder = RunFolder("runs/one")
    assert files(folder.path) == {
        "adapter", "adapter_best", "checkpoints", "config.yaml", "dropped.jsonl", "facts.parquet",
        "interference.safetensors", "interference_by_group.json", "logs", "manifest.json", "plots", "probes.parquet",
        "report.html", "summary.json",
    }  # fmt: skip
    rows = folder.facts.to_pylist()
    assert len(rows) == 12
    dropped = [row for row in rows if not row["kept"]]
    assert {row["drop_reason"] for row in dropped} == {"too_far"}
    assert all(row["loss_weight"] == 0 for row in dropped)
    # Dropped is not lost: it is evaluated, and written down as it was read.
    assert all(row["nll_after"] is not None and row["answer_after"] is not None for row in rows)
    lines = [json.loads(line) for line in folder.paths.dropped.read_text(encoding="utf-8").splitlines()]
    assert {line["id"] for line in lines} == {row["fact_id"] for row in dropped}
    # ... in the form that `data.facts` reads, for a second adapter.
    assert {fact.id for fact in read_facts(str(folder.paths.dropped)).facts} == {row["fact_id"] for row in dropped}
    assert sum(row["net_transfer"] is not None for row in rows) == 6
    assert {row["kind"] for row in folder.probes.to_pylist()} == {
        "neighborhood", "paraphrase", "portability", "reversed",
    }  # fmt: skip
    summary = folder.summary
    assert (summary.num_facts, summary.num_kept) == (12, 12 - len(dropped))
    assert [record.epoch for record in summary.epochs] == [0, 1]
    assert [record.epoch for record in summary.interference] == [0, 2]
    assert summary.seconds.training > 0
    assert summary.config["data"]["batches"]["micro_batch_size"] == 4
    output = capsys.readouterr().out
    assert "facts kept" in output
    assert "report.html" in output


def test_validate_test_predict_export_and_report_work_on_the_run(settings, tiny_model, capsys, monkeypatch):
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/one"]) == 0
    config = ["--config=runs/one/config.yaml"]
    before = pq.read_table("runs/one/facts.parquet").to_pylist()

    assert main(["validate", *config, "--ckpt_path=last"]) == 0
    shown = capsys.readouterr().out
    ends = [f"val/{name}{end}" for name in ("efficacy_teacher_forced", "nll") for end in ("", "_low", "_high")]
    assert all(name in shown for name in ends)
    scores = RunFolder("runs/one").summary.scores
    assert {"efficacy", "generalization", "locality", "portability"} <= {one.name for one in scores}
    assert main(["test", *config, "--ckpt_path=last"]) == 0
    after = pq.read_table("runs/one/facts.parquet").to_pylist()
    assert [row["answer_after"] for row in after] == [row["answer_after"] for row in before]
    assert [row["net_transfer"] for row in after] == [row["net_transfer"] for row in before]  # not measured: stays
    assert len(RunFolder("runs/one").summary.epochs) == 2
    assert RunFolder("runs/one").summary.scores == scores
    # An exported adapter in a folder of its own gives the same scores, in every file.
    assert main(["test", *config, "--model.adapter=runs/one/adapter", "--trainer.default_root_dir=runs/again"]) == 0
    again = RunFolder("runs/again")
    assert again.summary.scores == scores
    assert again.summary.retention is not None
    assert again.summary.retention == RunFolder("runs/one").summary.retention
    assert "<code>portability</code>" in again.paths.report.read_text(encoding="utf-8")
    assert main(["compare", "runs/one", "runs/again"]) == 0
    assert "Facts lost: 0" in capsys.readouterr().out

    capsys.readouterr()
    prompts = "--data.prompts=['The capital of Aro is', 'The river is']"
    assert main(["predict", *config, "--model.adapter=runs/one/adapter", prompts]) == 0
    answers = [json.loads(line) for line in Path("runs/one/predictions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in answers] == ["The capital of Aro is", "The river is"]
    free = [row["base_answer"] for row in answers]
    assert "The capital of Aro is" in capsys.readouterr().out
    assert main(["predict", *config, "--ckpt_path=last"]) == 0
    answers = [json.loads(line) for line in Path("runs/one/predictions.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in answers] == [row["answer_after"] for row in before]
    assert [row["base_answer"] for row in answers] == [row["answer_before"] for row in before]
    assert [(row["base_right"], row["right"]) for row in answers] == [
        (row["efficacy_before"], row["efficacy_after"]) for row in before
    ]
    written = Path("runs/one/predictions.jsonl").read_bytes()
    lines = iter(["The river is"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, ""))
    capsys.readouterr()
    assert main(["predict", *config, "--model.adapter=runs/one/adapter", "--chat"]) == 0
    assert f"base:   {visible(free[1])}\n" in capsys.readouterr().out
    assert Path("runs/one/predictions.jsonl").read_bytes() == written

    assert main(["export", "runs/one", "out/adapter"]) == 0
    assert (Path("out/adapter") / "adapter_model.safetensors").is_file()
    assert main(["export", "runs/one", "out/merged", "--merge"]) == 0
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained("out/merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-4)

    report = Path("runs/one/report.html")
    report.unlink()
    assert main(["report", "runs/one"]) == 0
    assert report.is_file()


def test_a_second_run_touches_no_model_in_setup(settings, own_cache, monkeypatch):
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/one"]) == 0
    import lit_semantic_peft.data.scoring as scoring

    def refuse(*_, **__):
        raise AssertionError("the base model was loaded for scoring")

    monkeypatch.setattr(scoring, "score_facts", refuse)
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/two"]) == 0
    one, two = (Path(f"runs/{name}/adapter/adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two  # same seed, same machine, same bytes


def test_a_shortened_evaluation_spoils_no_later_one(settings, own_cache, capsys):
    assert main(["fit", *settings, "--trainer.limit_test_batches=1", "--trainer.default_root_dir=runs/short"]) == 0
    status = main(["fit", *settings, "--trainer.default_root_dir=runs/whole"])
    assert status == 0, capsys.readouterr().err
    asked = pq.read_table("runs/whole/facts.parquet").column("answer_after").to_pylist()
    assert None not in asked


def test_a_trial_run_leaves_nothing_in_the_way(settings, capsys):
    later = [
        "--data.selection.filters=[{class_path: lit_semantic_peft.semantics.RandomFilter}]",
        "--data.selection.deferred_from_epoch=1",
    ]
    trial = ["--trainer.fast_dev_run=true", "--trainer.default_root_dir=runs/one"]
    status = main(["fit", *settings, *later, *trial])
    assert status == 0, capsys.readouterr().err
    assert not Path("runs").exists()
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/facts.parquet").write_bytes(b"of a real run")
    assert main(["fit", *settings, *ONLY_FACTS, *trial]) == 0, capsys.readouterr().err
    assert files(Path("runs")) == {"one"}
    assert files(Path("runs/one")) == {"facts.parquet"}


def test_the_best_epoch_is_chosen_where_not_every_epoch_is_validated(settings, capsys):
    monitored = [
        *ONLY_FACTS,
        "--checkpoint.monitor=val/nll",
        "--trainer.check_val_every_n_epoch=2",
        "--trainer.max_epochs=3",
    ]
    status = main(["fit", *settings, *monitored, "--trainer.default_root_dir=runs/one"])
    assert status == 0, capsys.readouterr().err
    assert sorted(path.name for path in RunFolder("runs/one").paths.checkpoints.iterdir()) == [
        "epoch001.ckpt",
        "last.ckpt",
    ]
    assert step_of("runs/one/checkpoints/epoch001.ckpt") == 6
    assert step_of("runs/one/checkpoints/last.ckpt") == 9  # also where no validation says that it is better


def test_without_a_run_folder_it_is_the_default(settings):
    Path("null.yaml").write_text("trainer: {default_root_dir: null}\n", encoding="utf-8")
    assert main(["fit", *settings, *ONLY_FACTS, "--config=null.yaml"]) == 0
    assert Path("runs/default/report.html").is_file()


def test_a_learning_rate_alone_is_that_of_the_default_optimizer(settings):
    rates = {"typed": ["--model.optimizer.lr", "1e-4"], "own": ["--model.optimizer=SGD", "--model.optimizer.lr=0.2"]}
    written = {}
    for name, rate in rates.items():
        run = RunFolder(f"runs/{name}")
        assert main(["fit", *settings, *ONLY_FACTS, *rate, f"--trainer.default_root_dir={run.path}"]) == 0
        optimizer = yaml.safe_load(run.paths.config.read_text(encoding="utf-8"))["model"]["optimizer"]
        written[name] = optimizer["class_path"], optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]
    assert written == {"typed": ("torch.optim.AdamW", 1e-4, 0), "own": ("torch.optim.SGD", 0.2, 0)}


def test_environment_variables_that_look_like_settings_are_named(settings, monkeypatch, caplog):
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_EPOCHS", "7")
    monkeypatch.setenv("PL_SCORE__DATA__SEED", "7")
    run = RunFolder("runs/one")
    assert main(["fit", *settings, *ONLY_FACTS, f"--trainer.default_root_dir={run.path}"]) == 0
    (line,) = [record.message for record in caplog.records if record.message.startswith("Not read: ")]
    assert line == "Not read: PL_FIT__TRAINER__MAX_EPOCHS. Settings come from options and `--config`."
    assert yaml.safe_load(run.paths.config.read_text(encoding="utf-8"))["trainer"]["max_epochs"] == 2


def test_the_configuration_is_written_when_training_starts(settings, monkeypatch):
    """A start that fails leaves nothing; what is written is the configuration that a resumed run may have."""
    run = RunFolder("runs/one")
    fit = ["fit", *settings, *ONLY_FACTS, f"--trainer.default_root_dir={run.path}"]
    there = []
    for hook in ("on_fit_start", "on_train_epoch_start"):
        own = getattr(SemanticPeftModule, hook)
        monkeypatch.setattr(
            SemanticPeftModule, hook, lambda module, own=own: there.append(run.paths.config.exists()) or own(module)
        )
    assert main([*fit, "--model.peft_config={class_path: peft.LoraConfig, init_args: {target_modules: [none]}}"]) == 2
    assert not run.path.exists()
    assert main([*fit, "--trainer.max_epochs=1"]) == 0
    assert there == [False, True]
    before = run.paths.config.read_bytes()
    assert main([*fit, "--ckpt_path=last", "--model.peft_config.r=3", "--trainer.max_epochs=1"]) == 2
    assert run.paths.config.read_bytes() == before


def test_facts_with_brackets_are_shown_as_they_are(settings, capsys):
    rows = [{"prompt": "The tag that ends bold text is", "target": "[/b]"}, {"prompt": "Red is [red]", "target": "so"}]
    Path("tags.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    facts = [*(one for one in settings if "facts=" not in one), "--data.facts=tags.jsonl"]
    assert main(["score", *(one for one in facts if "max_epochs" not in one)]) == 0, capsys.readouterr().err
    assert "[/b]" in capsys.readouterr().out
    assert main(["fit", *facts]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"Report: {Path('runs/default/report.html').absolute()}"
    assert "Optimizer steps: 2, of at most 4 facts each" in output.err
    assert main(["predict", *facts, "--ckpt_path=last"]) == 0
    assert "[/b]" in capsys.readouterr().out
    assert not list(Path("runs/default/logs").glob("resumed_*"))
    assert main(["compare", "runs/default", "runs/default"]) == 0


def test_what_looked_at_the_base_model_is_not_in_the_way_of_a_training(settings, capsys):
    folder = "--trainer.default_root_dir=runs/one"
    assert main(["validate", *settings, folder]) == 0
    (Path("runs/one") / "predictions.jsonl").touch()
    (Path("runs/one") / "wandb").mkdir()
    assert {"logs"} < files(Path("runs/one"))
    assert main(["fit", *settings, folder, "--trainer.max_epochs=1", "--interference.num_facts=0"]) == 0
    assert main(["fit", *settings, folder]) == 2
    assert "exists already" in capsys.readouterr().err


def test_score_takes_the_device_of_the_trainer(settings, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # a GPU that nobody asked for
    assert main(["score", *settings, "--output=scores", "--warmup_steps=1"]) == 0


def test_score_takes_the_first_of_listed_devices(settings, monkeypatch):
    seen = []
    monkeypatch.setattr(KnowledgeTrainer, "__init__", lambda self, **options: seen.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["score", *settings, "--trainer.devices=[3,5]"])
    assert seen[0]["devices"] == [3]


def test_an_interrupted_run_goes_on_to_the_same_adapter(settings):
    # The warm-up is shorter for one epoch, so it is switched off in both.
    settings = [*settings, "--model.schedule=constant", "--model.warmup_ratio=0"]
    parts = [*settings, "--trainer.default_root_dir=runs/parts"]
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/plain"]) == 0
    assert main(["fit", *parts, "--trainer.max_epochs=1"]) == 0
    assert main(["fit", *parts, "--ckpt_path=last"]) == 0
    plain, resumed = (
        Path(f"runs/{name}/adapter/adapter_model.safetensors").read_bytes() for name in ("plain", "parts")
    )
    assert plain == resumed
    left, right = (RunFolder(f"runs/{name}").facts.to_pylist() for name in ("plain", "parts"))
    assert left == right
    assert len(RunFolder("runs/parts").summary.epochs) == 2


def test_monitor_on_or_off_is_the_same_run(settings):
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/on", "--interference.every_n_epochs=1"]) == 0
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/off", "--interference.num_facts=0"]) == 0
    on, off = (Path(f"runs/{name}/adapter/adapter_model.safetensors").read_bytes() for name in ("on", "off"))
    assert on == off
    assert not RunFolder("runs/off").paths.interference.exists()


def test_score_says_what_a_filter_would_do_and_trains_nothing(settings, capsys):
    filters = (
        "--data.selection.filters=[{class_path: lit_semantic_peft.semantics.RandomFilter, init_args: {keep: 0.5}}]"
    )
    assert main(["score", *settings, filters, "--output=scores"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"random\s+│\s+6", output)
    assert "Near-duplicates" in output
    assert "not measured" in output
    assert {"facts.parquet", "report.html", "findings.json"} <= files(Path("scores"))
    assert not Path("runs").exists()
    found = RunFolder("scores").read()
    assert [(one.name, one.num_given, one.dropped) for one in found.score.findings.filters] == [
        ("RandomFilter", 12, {"random": 6})
    ]
    assert None not in found.facts.column("answer_before").to_pylist()
    page = Path("scores/report.html").read_bytes()
    assert b"What each filter would drop" in page
    assert main(["report", "scores"]) == 0
    assert Path("scores/report.html").read_bytes() == page
    capsys.readouterr()

    assert main(["score", *settings, filters, "--output=scores", "--warmup_steps=3"]) == 0
    output = capsys.readouterr().out
    assert "Worst conflicts" in output
    assert "after 3 steps" in output
    rows = pq.read_table("scores/facts.parquet").to_pylist()
    assert sum(row["conflict_rate"] is not None for row in rows) == 6
    assert "After 3 steps of a throw-away adapter" in Path("scores/report.html").read_text(encoding="utf-8")


def test_score_reports_also_where_the_filters_leave_no_fact(settings, capsys):
    one = "{class_path: lit_semantic_peft.semantics.BandFilter, init_args: {min_distance: 1.99}}"
    filters = f"--data.selection.filters=[{one}, {{class_path: lit_semantic_peft.semantics.RandomFilter}}]"
    assert main(["score", *settings, filters, "--output=scores"]) == 0, capsys.readouterr().err
    said = "The filters leave no fact, and `fit` refuses to train on none. `BandFilter` drops the last 12 (too near)."
    assert said in " ".join(capsys.readouterr().out.split())
    found = RunFolder("scores").read()
    assert [(one.name, one.dropped) for one in found.score.findings.filters] == [("BandFilter", {"too_near": 12})]
    assert set(found.facts.column("loss_weight").to_pylist()) == {0.0}
    page = Path("scores/report.html").read_text(encoding="utf-8")
    assert "The filters leave no fact" in page
    assert "Left out of this report" not in page

    assert main(["score", *settings, filters, "--output=more", "--warmup_steps=1"]) == 2
    assert "`filters` leave no fact" in capsys.readouterr().err
    assert not Path("more").exists()


MORE_DISTANCES = "--data.selection.more_distances=[{class_path: lit_semantic_peft.semantics.HiddenStateDistance}]"


def with_outcome(path, table, values):
    """Puts an outcome in the place of a short run's, which has learned nothing."""
    at = table.column_names.index("efficacy_teacher_forced_after")
    pq.write_table(table.set_column(at, "efficacy_teacher_forced_after", [values]), path)


def test_score_says_which_distance_predicts_what_a_run_learned(settings, tiny_model, capsys):
    run = [*settings, "--trainer.default_root_dir=runs/one"]
    assert main(["fit", *run]) == 0
    score = ["score", *settings, "--run=runs/one", "--output=scores"]
    table = pq.read_table("runs/one/facts.parquet")
    with_outcome("runs/one/facts.parquet", table, [False] * 12)
    capsys.readouterr()
    assert main(score) == 2
    assert "at least two of the trained facts must have been learned" in capsys.readouterr().err
    assert not Path("scores").exists()
    median = sorted(table.column("distance").to_pylist())[6]
    nearest = [distance < median for distance in table.column("distance").to_pylist()]
    with_outcome("runs/one/facts.parquet", table, nearest)
    assert main([*score, MORE_DISTANCES]) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert "How the distances agree" in output
    assert re.search(r"What predicts that a fact is learned \(AUROC\)", output)
    found = json.loads(Path("scores/distances.json").read_text(encoding="utf-8"))
    assert found["distances"] == ["ExpectedEmbeddingDistance", "HiddenStateDistance", "Surprisal"]
    assert [row[at] for at, row in enumerate(found["rank_correlation"])] == pytest.approx([1.0] * 3)
    of_distance = found["predicts_learned"]["efficacy_teacher_forced"]
    assert of_distance["ExpectedEmbeddingDistance"]["auroc"] == 1.0
    assert of_distance["HiddenStateDistance"]["auroc"] < 1.0
    assert Path("scores/plots/distances.png").is_file()
    # The same model by another name is the same model; other weights under any name are not.
    same, other = shutil.copytree(tiny_model, "same"), save_tiny_model(Path("other"), seed=1)
    assert main([*score, f"--model.base_model={same}"]) == 0, capsys.readouterr().err
    assert main([*score, f"--model.base_model={other}"]) == 2
    assert "was trained on the base model" in capsys.readouterr().err
    assert main(["score", *settings, "--run=runs/none"]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_score_takes_the_configuration_of_the_run_that_it_looks_at(settings, capsys):
    """Also of a resumed one that had two processes; and leaves every file of the run as it was."""
    fit = ["fit", *settings, "--trainer.default_root_dir=runs/one"]
    assert main([*fit, "--trainer.max_epochs=1", "--model.warmup_ratio=0"]) == 0
    assert main([*fit, "--ckpt_path=last", "--model.warmup_ratio=0"]) == 0
    path = Path("runs/one/config.yaml")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "ckpt_path" not in config  # or this configuration would begin every run where that one went on
    config["trainer"] |= {"strategy": "ddp", "devices": 2}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with_outcome("runs/one/facts.parquet", pq.read_table("runs/one/facts.parquet"), [True] * 6 + [False] * 6)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}

    score = ["score", f"--config={path}", "--run=runs/one"]
    assert main([*score, MORE_DISTANCES]) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert "What predicts that a fact is learned" in output
    doubtful = json.loads(Path("runs/one/score/doubtful.json").read_text(encoding="utf-8"))["facts"]
    assert re.search(rf"Against what the base model knows[^:]*: {len(doubtful)}\n", output)
    assert {"distances.json", "facts.parquet", "report.html"} <= files(Path("runs/one/score"))
    assert main([*score, "--output=runs/one"]) == 2
    assert "`output` runs/one is the folder of a run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_help_is_quick():
    def cpu_seconds(*arguments: str) -> tuple[float, str]:
        """Processor time, which a busy machine changes less than the clock does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout

    program = ("-m", "lit_semantic_peft")
    took, text = min(cpu_seconds(*program, "--help") for _ in range(3))
    assert took < 1.0
    for command in ("fit", "validate", "test", "predict", "score", "augment", "compare", "convert", "export", "report"):
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
    took, text = min(cpu_seconds(*program, "fit", "--help") for _ in range(3))
    assert took < 1.0
    assert "--data.facts" in text
    assert "facts per forward pass" in text


def test_score_lists_contradictions_instead_of_refusing_them(settings, facts_file, capsys):
    # What looks like markup of the terminal's is text like any other.
    text = facts_file.read_text(encoding="utf-8").replace("The capital of", "[/b] :cat: of")
    lines = text.splitlines()
    other = {**json.loads(lines[0]), "id": "town-0-again", "target": "Rhine and Volga"}
    facts_file.write_text("\n".join([*lines, json.dumps(other)]) + "\n", encoding="utf-8")
    assert main(["score", *settings, "--output=scores"]) == 0
    output = capsys.readouterr().out
    assert "Contradictions (same prompt, different targets): 1" in output
    assert "Rhine and Volga" in output
    (contradiction,) = RunFolder("scores").read().score.findings.contradictions
    assert contradiction.fact_ids == ("town-0", "town-0-again")
    assert "│ [/b] :cat: of" in output
    assert main(["fit", *settings]) == 2
    assert "Rhine and Volga" in capsys.readouterr().err
