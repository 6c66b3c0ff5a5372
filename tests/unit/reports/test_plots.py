import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from lit_semantic_peft.interference.matrix import InterferenceMatrix
from lit_semantic_peft.reports.charts import CHARTS, describe_charts, heat_map
from lit_semantic_peft.reports.charts.distance import distance_histogram
from lit_semantic_peft.reports.charts.kinds import BeforeAfterChart, HeatMap, LineChart, Series
from lit_semantic_peft.reports.charts.png import draw_figure, save_png
from lit_semantic_peft.reports.charts.svg import draw_svg
from lit_semantic_peft.reports.conflicts import worst_conflicts
from lit_semantic_peft.reports.plots import write_plots
from lit_semantic_peft.reports.records import Summary
from lit_semantic_peft.reports.run_folder import RunContents
from matplotlib.image import imread

pytestmark = pytest.mark.usefixtures("drawn_plots")


def test_every_plot_is_drawn_and_drawn_the_same_twice(run_folder):
    charts = describe_charts(run_folder.read())
    paths = write_plots(run_folder, charts)
    assert sorted(path.name for path in paths) == [
        "dimensions.png",
        "distance_histogram.png",
        "interference.png",
        "learning.png",
        "recall.png",
    ]
    first = [path.read_bytes() for path in paths]
    for path in paths:
        image = imread(path)
        assert min(image.shape[:2]) > 300
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 50, path.name
    assert [path.read_bytes() for path in write_plots(run_folder, charts)] == first


def test_what_was_not_measured_is_not_drawn(run_folder):
    run_folder.paths.interference.unlink()
    charts = describe_charts(run_folder.read())
    assert "interference.png" not in {path.name for path in write_plots(run_folder, charts)}


def test_drawing_leaves_pyplot_alone(run_folder):
    code = (
        "import sys; from lit_semantic_peft.reports import build_report; assert 'matplotlib' not in sys.modules;"
        f"build_report({str(run_folder.path)!r}); "
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_histogram_counts_every_measured_fact_once(run_folder):
    run = run_folder.read()
    histogram = distance_histogram(run)
    assert histogram.series[0].label == "kept"
    assert sum(sum(one.values) for one in histogram.series) == len(run.facts)
    assert sum(histogram.series[0].values) == sum(run.facts.column("kept").to_pylist())
    np.testing.assert_allclose(np.diff(histogram.edges), np.diff(histogram.edges)[0])


def test_the_heat_map_is_the_matrix_reordered_by_relation(run_folder):
    facts, matrix = run_folder.facts, run_folder.matrix
    heat = heat_map(facts, matrix)
    relation = dict(zip(facts.column("fact_index").to_pylist(), facts.column("relation").to_pylist(), strict=True))
    shown = [relation[index] for index in heat.fact_index.tolist()]
    assert shown == sorted(shown)
    assert sum(count for _, _, count in heat.blocks) == len(shown)
    place = {index: row for row, index in enumerate(matrix.fact_index.tolist())}
    rows = [place[index] for index in heat.fact_index.tolist()]
    np.testing.assert_array_equal(heat.cosine, matrix.gradient_cosine()[np.ix_(rows, rows)])
    assert heat_map(facts, matrix, max_facts=10).cosine.shape == (10, 10)


@pytest.mark.parametrize("size", [0, 1])
def test_a_matrix_of_hardly_any_facts_is_no_error(run_folder, size):
    matrix = InterferenceMatrix(np.ones((size, size), np.float32), np.arange(size))
    assert heat_map(run_folder.facts, matrix).cosine.shape == (size, size)


def test_the_worst_conflict_undoes_the_largest_share_of_its_victims_step(run_folder):
    facts, matrix = run_folder.facts, run_folder.matrix
    weights = dict(zip(facts.column("fact_index").to_pylist(), facts.column("loss_weight").to_pylist(), strict=True))
    w = np.array([weights[index] for index in matrix.fact_index.tolist()])
    undone = -(matrix.gradient_dot * w[None, :]) / (w * np.diagonal(matrix.gradient_dot))[:, None]
    worst = worst_conflicts(facts, matrix, count=5)
    assert worst[0].undone == pytest.approx(undone.max(), rel=1e-5)
    i, j = np.unravel_index(undone.argmax(), undone.shape)
    index = facts.column("fact_index").to_pylist()
    assert (index[worst[0].victim], index[worst[0].aggressor]) == (matrix.fact_index[i], matrix.fact_index[j])
    assert [item.undone for item in worst] == sorted((item.undone for item in worst), reverse=True)
    without = worst_conflicts(facts, None, count=5)
    assert [(item.undone, item.cosine) for item in without] == [(item.undone, None) for item in worst]
    # Of a table from before it was measured the pairs are known, in the order of net transfer.
    at = facts.column_names.index("undone_by_worst")
    earlier = facts.set_column(at, "undone_by_worst", pa.nulls(len(facts), pa.float64()))
    alone = [item.net_transfer for item in worst_conflicts(earlier, matrix, count=5)]
    assert alone == sorted(alone)


def test_page_and_png_draw_the_same_descriptions(run_folder):
    charts = describe_charts(run_folder.read())
    assert list(charts) == [entry.name for entry in CHARTS]
    for chart in charts.values():
        (axes, *_) = draw_figure([chart]).axes
        assert axes.get_title(loc="left").startswith(chart.title)
        if isinstance(chart, HeatMap):
            continue
        drawing = draw_svg(chart)
        assert f'aria-label="{chart.title}' in drawing
        assert f">{chart.x_label}</text>" in drawing or isinstance(chart, BeforeAfterChart)
        assert axes.get_xlabel() == chart.x_label
        if isinstance(chart, LineChart):
            for line, one in zip(axes.lines, chart.series, strict=True):
                np.testing.assert_array_equal(line.get_ydata(), np.array(one.values, float))
                assert drawing.count(f'class="{one.color} mark"') == len(one.measured)


def test_what_was_not_measured_is_called_so_in_a_png_and_left_out_of_the_page(run_folder):
    run = run_folder.read()
    empty = describe_charts(RunContents(run.facts.slice(0, 0), Summary(0, 0, 0)))
    assert not any(chart.is_measured for chart in empty.values())
    assert {draw_svg(chart) for chart in empty.values() if not isinstance(chart, HeatMap)} == {None}
    figure = draw_figure([empty["loss_by_epoch"], describe_charts(run)["loss_by_epoch"]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]
    assert not figure.axes[1].texts
    assert write_plots(run_folder, empty) == []


def test_a_gap_in_a_line_is_a_gap():
    chart = LineChart("t", "", (1, 2, 3, 4), "epoch", "y", (Series("a", (1.0, None, 2.0, float("nan")), "blue"),))
    assert draw_svg(chart).count("<polyline") == 2
    assert chart.series[0].measured == [1.0, 2.0]


def test_the_run_folder_plots_its_matrix(run_folder):
    figure = run_folder.plot_interference()
    assert figure.axes[0].get_title(loc="left").startswith("Gradient cosine between facts")


@pytest.mark.filterwarnings("error")
def test_characters_that_the_font_lacks_are_boxes_without_a_warning(tmp_path):
    """A warning for each would hold it as it is, and a terminal would obey it."""
    chart = LineChart("東京\x1b[2J", "", (1, 2), "\x07", "y", (Series("\x9b", (1.0, 2.0), "blue"),))
    save_png(draw_figure([chart]), tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[0] > 300
