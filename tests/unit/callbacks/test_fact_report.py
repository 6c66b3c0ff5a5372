"""Where the time went: the parts of a run add up to what the user waited, and scoring is one of them."""

import time

import lit_semantic_peft.data.scoring as scoring
import lit_semantic_peft.models.base as base
import pytest
from lit_semantic_peft.callbacks import FactReport, fact_report
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import RunFolder, build_report

from fixtures.training import ONLY_FACTS, build, fit


def run(tiny_model, facts_file, folder, *stages: str, **settings: str) -> float:
    """Fits or tests in a run folder, and says how long the user waited."""
    parts = build(
        tiny_model,
        facts_file,
        data={"evaluation": ONLY_FACTS, "cache_dir": str(folder / "cache")},
        trainer={"max_epochs": 1, "limit_val_batches": None, "default_root_dir": folder / "run", **settings},
        callbacks=[FactReport(show_summary=False)],
    )
    begun = time.monotonic()
    for stage in stages:
        options = {"verbose": False} if stage == "test" else {}
        getattr(parts.trainer, stage)(parts.module, datamodule=parts.data, **options)
    return time.monotonic() - begun


def test_the_parts_add_up_and_scoring_is_one(tiny_model, facts_file, tmp_path, monkeypatch):
    score, find = scoring.score_facts, base.find_base_model
    monkeypatch.setattr(scoring, "score_facts", lambda *a, **k: time.sleep(1.0) or score(*a, **k))
    monkeypatch.setattr(base, "find_base_model", lambda *a: time.sleep(0.3) or find(*a))
    reports = []

    def timed(folder, contents):
        begun = time.monotonic()
        build_report(folder, contents)
        reports.append(time.monotonic() - begun)

    # The last report is made after the summary that it shows.
    monkeypatch.setattr(fact_report, "build_report", timed)
    waited = run(tiny_model, facts_file, tmp_path, "fit", "test")
    folder = RunFolder(tmp_path / "run")
    seconds = folder.summary.seconds
    assert seconds.scoring >= 1.0
    assert seconds.setup >= 0.6  # looked for by `prepare_data` and by `setup`
    assert seconds.training > 0
    assert seconds.evaluation > reports[0]
    assert seconds.total < waited
    assert seconds.total == pytest.approx(waited - reports[-1], rel=0.1, abs=0.3)

    # Another evaluation of the finished run replaces the first; what it does not measure stays.
    run(tiny_model, facts_file, tmp_path, "test")
    again = folder.summary.seconds
    assert (again.setup, again.scoring, again.training) == (seconds.setup, seconds.scoring, seconds.training)
    assert again.evaluation >= 0.6
    assert f"scoring {again.scoring:.0f}" in folder.paths.report.read_text(encoding="utf-8")


def test_an_epoch_without_validation_has_no_numbers_of_one(tiny_model, facts_file, tmp_path):
    folder = RunFolder(tmp_path / "run")
    trainer = {"max_epochs": 5, "limit_val_batches": None, "check_val_every_n_epoch": 2, "default_root_dir": folder}
    fit(tiny_model, facts_file, trainer=trainer, callbacks=[FactReport()])
    epochs = folder.summary.epochs
    assert [epoch.val_nll is not None for epoch in epochs] == [False, True, False, True, False]
    assert [epoch.recall is not None for epoch in epochs] == [False, True, False, True, False]
    assert all(epoch.loss is not None for epoch in epochs)
    build_report(folder)


def test_distances_before_and_after_are_of_one_precision(tiny_model, facts_file, tmp_path):
    run(tiny_model, facts_file, tmp_path, "test", precision="bf16-mixed")
    facts = RunFolder(tmp_path / "run").facts
    assert facts["distance"].to_pylist() == facts["distance_after"].to_pylist(), "the adapter is untrained"
    assert None not in facts["distance"].to_pylist()


def test_the_report_is_left_to_a_test_that_follows(tiny_model, facts_file, tmp_path):
    folder, report = RunFolder(tmp_path / "run"), FactReport(show_summary=False)
    report.is_test_next = True
    settings = {"max_epochs": 1, "limit_val_batches": None, "default_root_dir": folder}
    parts = build(tiny_model, facts_file, data={"evaluation": ONLY_FACTS}, trainer=settings, callbacks=[report])
    parts.trainer.fit(parts.module, datamodule=parts.data)
    assert folder.summary.epochs
    assert folder.facts.num_rows == folder.summary.num_facts
    assert not folder.paths.report.exists()
    assert not folder.paths.plots.exists()
    parts.trainer.test(parts.module, datamodule=parts.data, verbose=False)
    assert folder.paths.report.is_file()
    assert {path.stem for path in folder.paths.plots.iterdir()} >= {"recall", "learning"}


def test_a_summary_that_cannot_be_read_is_refused_before_anything_is_asked(tiny_model, facts_file, tmp_path):
    run(tiny_model, facts_file, tmp_path, "fit")
    summary = RunFolder(tmp_path / "run").paths.summary
    summary.write_text(summary.read_text().replace('"pushed_away"', '"recall": {}, "pushed_away"'))
    with pytest.raises(InputError, match=r"unknown field.*recall"):
        run(tiny_model, facts_file, tmp_path, "test")
