"""Where the time went: the parts of a run add up to what the user waited, and scoring is one of them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import AdapterCheckpoint, AdapterExport, FactReport
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import SCORES
from lit_semantic_peft.reports import RunFolder, build_report, compare_runs, html
from lit_semantic_peft.semantics import ExpectedEmbeddingDistance, NoFilter, RandomFilter
from lit_semantic_peft.stopwatch import Stopwatch

from fixtures.clock import Clock
from fixtures.training import ONLY_FACTS, build, fit, with_retained


class Waits(Callback):
    """Lets time pass in each part of a run: powers of two, so that sums are exact."""

    def __init__(self) -> None:
        self.clock = clock = Clock()
        self.measuring = self.filtering = self.training = self.evaluation = self.report = 0.0

        class SlowDistance(ExpectedEmbeddingDistance):
            def measure(distance, outputs):
                self._wait("measuring", 1.0)
                return super().measure(outputs)

        class SlowFilter(NoFilter):
            def select(one, facts):
                self._wait("filtering", 0.25)
                return super().select(facts)

        class Report(FactReport):
            pass

        Report.clock = staticmethod(clock)
        self.data = {"distance": SlowDistance(), "filters": [SlowFilter()]}
        self.fact_report = Report(show_summary=False)

    def on_train_batch_end(self, *_):
        self._wait("training", 2.0)

    def on_test_batch_end(self, *_):
        self._wait("evaluation", 4.0)

    def build_report(self, *arguments):
        build_report(*arguments)
        self._wait("report", 8.0)

    def _wait(self, part: str, seconds: float) -> None:
        self.clock.passes(seconds)
        setattr(self, part, getattr(self, part) + seconds)


def run(tiny_model, facts_file, folder, *stages: str, waits: Waits | None = None, **settings: str) -> None:
    """Fits or tests in a run folder."""
    parts = build(
        tiny_model,
        facts_file,
        data={"evaluation": ONLY_FACTS, "cache_dir": str(folder / "cache"), **(waits.data if waits else {})},
        trainer={"max_epochs": 1, "limit_val_batches": None, "default_root_dir": folder / "run", **settings},
        callbacks=[waits, waits.fact_report] if waits else [FactReport(show_summary=False)],
    )
    if waits:
        parts.data.stopwatch = Stopwatch(waits.clock)
    for stage in stages:
        options = {"verbose": False} if stage == "test" else {}
        getattr(parts.trainer, stage)(parts.module, datamodule=parts.data, **options)


def test_the_parts_add_up_and_scoring_is_one(tiny_model, facts_file, tmp_path, monkeypatch):
    waits = Waits()
    monkeypatch.setattr(html, "build_report", waits.build_report)
    run(tiny_model, facts_file, tmp_path, "fit", "test", waits=waits)
    folder = RunFolder(tmp_path / "run")
    seconds = folder.summary.seconds
    assert seconds.scoring == 1.0
    assert seconds.setup == waits.filtering == 0.25
    assert seconds.training == waits.training == 2.0 * 3
    # The last report is made after the summary that it shows, the one before it after training.
    assert waits.report == 16.0
    assert seconds.evaluation == waits.evaluation + (waits.measuring - 1.0) + 8.0  # the distances after training
    assert seconds.total == waits.clock.now - 8.0

    # Another evaluation of the finished run replaces the first; what it does not measure stays.
    other = Waits()
    monkeypatch.setattr(html, "build_report", other.build_report)
    run(tiny_model, facts_file, tmp_path, "test", waits=other)
    again = folder.summary.seconds
    assert (again.setup, again.scoring, again.training) == (seconds.setup, seconds.scoring, seconds.training)
    assert again.evaluation == other.filtering + other.evaluation + other.measuring
    assert f"scoring {again.scoring:.0f}" in folder.paths.report.read_text(encoding="utf-8")


def test_an_epoch_without_validation_has_no_numbers_of_one(tiny_model, facts_file, tmp_path):
    folder = RunFolder(tmp_path / "run")
    trainer = {"max_epochs": 5, "limit_val_batches": None, "check_val_every_n_epoch": 2, "default_root_dir": folder}
    fit(tiny_model, facts_file, trainer=trainer, callbacks=[FactReport()])
    epochs = folder.summary.epochs
    assert [epoch.val_nll is not None for epoch in epochs] == [False, True, False, True, False]
    assert [epoch.efficacy_teacher_forced is not None for epoch in epochs] == [False, True, False, True, False]
    assert all(epoch.loss is not None for epoch in epochs)
    build_report(folder)


def test_distances_before_and_after_are_of_one_precision_and_the_filters_is_kept(tiny_model, facts_file, tmp_path):
    seen = {}
    for precision in ("32-true", "bf16-mixed"):
        run(tiny_model, facts_file, tmp_path / precision, "test", precision=precision)
        facts = RunFolder(tmp_path / precision / "run").facts
        seen[precision] = {name: facts[name].to_pylist() for name in ("distance", "distance_before", "distance_after")}
        assert facts["distance_before"].to_pylist() == facts["distance_after"].to_pylist(), "the adapter is untrained"
        assert None not in facts["distance_before"].to_pylist()
        assert facts["pushed_away"].to_pylist() == [False] * len(facts)
    assert seen["bf16-mixed"]["distance"] == seen["32-true"]["distance"], "filters always saw them in float32"
    assert seen["bf16-mixed"]["distance"] == pytest.approx(seen["32-true"]["distance_before"], abs=1e-5)
    assert seen["bf16-mixed"]["distance_before"] != pytest.approx(seen["32-true"]["distance_before"], abs=1e-5)


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


@pytest.mark.parametrize("has_summary", [True, False])
def test_a_run_folder_of_another_version_is_evaluated_anew(tiny_model, facts_file, tmp_path, caplog, has_summary):
    run(tiny_model, facts_file, tmp_path, "fit")
    folder = RunFolder(tmp_path / "run")
    learned, paths = folder.facts["first_learned_epoch"], folder.paths
    flags = pa.array([True] * len(learned))
    old = folder.facts.drop_columns(["efficacy_before", "efficacy_after"]).append_column("recalled_before", flags)
    pq.write_table(old, paths.facts)
    paths.summary.write_text(paths.summary.read_text().replace('"pushed_away"', '"recall": {}, "pushed_away"'))
    with pytest.raises(InputError, match=r"unknown field.*recall[^$]*evaluate the run anew"):
        folder.summary  # noqa: B018
    with pytest.raises(
        InputError, match=r"another version of lit-semantic-peft.*\(recalled_before\).*`lit-semantic-peft"
    ):
        compare_runs(folder, folder)
    if not has_summary:
        paths.summary.unlink()
    run(tiny_model, facts_file, tmp_path, "test")
    said = [record.getMessage() for record in caplog.records if "earlier summary" in record.getMessage()]
    assert len(said) == has_summary
    assert all("recall" in one and "replaced" in one for one in said)
    assert "recalled_before" not in folder.facts.column_names
    assert folder.facts["efficacy_after"].null_count == 0
    assert folder.facts["first_learned_epoch"] == learned, "what is not measured again stays"
    assert folder.summary.score("efficacy").kept.after is not None
    compare_runs(folder, folder)


def test_dropped_is_the_same_in_the_logger_and_in_the_summary(tiny_model, facts_file, tmp_path):
    """Facts of the split `retain` are neither kept nor dropped."""
    settings = {"max_epochs": 1, "limit_val_batches": None, "default_root_dir": tmp_path / "run"}

    def stages(facts, **data):
        data["evaluation"] = ONLY_FACTS
        parts = build(tiny_model, facts, data=data, trainer=settings, callbacks=[FactReport(show_summary=False)])
        parts.trainer.fit(parts.module, datamodule=parts.data)
        logged = dict(parts.trainer.callback_metrics)
        parts.trainer.test(parts.module, datamodule=parts.data, verbose=False)
        return parts, logged | parts.trainer.callback_metrics

    parts, logged = stages(with_retained(facts_file))
    assert not parts.data.prepared.is_kept.all()
    assert not {name for name in logged if name.endswith("_dropped")}
    parts, logged = stages(with_retained(facts_file), filters=[RandomFilter(keep=0.5)])
    summary = RunFolder(tmp_path / "run").summary
    assert summary.num_dropped == parts.data.prepared.is_dropped.sum() > 0
    for score in SCORES:
        found, expected = logged.get(f"test/{score.name}_dropped"), summary.score(score.name).dropped.after
        assert (found is None) == (expected is None)
        assert found is None or float(found) == pytest.approx(expected.mean)
    nll = RunFolder(tmp_path / "run").facts.to_pylist()
    nll = [row["nll_after"] for row in nll if row["split"] == "inject" and not row["kept"]]
    assert float(logged["val/nll_dropped"]) == pytest.approx(sum(nll) / len(nll), rel=1e-4)


@pytest.mark.parametrize("callback", [AdapterCheckpoint, AdapterExport])
def test_a_monitor_of_an_earlier_version_is_refused_at_once_with_its_new_name(callback):
    with pytest.raises(InputError, match=r"`monitor` 'val/recall' is now 'val/efficacy_teacher_forced'"):
        callback(monitor="val/recall")


def test_a_monitor_that_is_not_logged_gets_a_suggestion(tiny_model, facts_file, tmp_path):
    settings = {"max_epochs": 1, "limit_val_batches": None, "default_root_dir": tmp_path / "run"}
    with pytest.raises(InputError, match=r"was not logged; there are: .*Did you mean 'val/efficacy_teacher_forced'\?"):
        fit(tiny_model, facts_file, trainer=settings, callbacks=[AdapterExport("val/efficacy_teacher_force")])
