import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from lit_semantic_peft.reports.plots import write_plots
from lit_semantic_peft.reports.tables import InterferenceMatrix
from lit_semantic_peft.reports.views import distance_histogram, heat_map, worst_conflicts
from matplotlib.image import imread


def test_every_plot_is_drawn_and_drawn_the_same_twice(run_folder):
    paths = write_plots(run_folder)
    assert [path.name for path in paths] == [
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
    assert [path.read_bytes() for path in write_plots(run_folder)] == first


def test_what_was_not_measured_is_not_drawn(run_folder):
    run_folder.interference.unlink()
    assert "interference.png" not in {path.name for path in write_plots(run_folder)}


def test_drawing_leaves_pyplot_alone(run_folder):
    code = (
        "import sys; from lit_semantic_peft.reports import plots; assert 'matplotlib' not in sys.modules;"
        f"plots.write_plots({str(run_folder.path)!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_histogram_counts_every_measured_fact_once(run_folder):
    facts = run_folder.read_facts()
    histogram = distance_histogram(facts)
    assert next(iter(histogram.counts)) == "kept"
    assert sum(int(counts.sum()) for counts in histogram.counts.values()) == len(facts)
    assert histogram.counts["kept"].sum() == sum(facts.column("kept").to_pylist())
    np.testing.assert_allclose(np.diff(histogram.edges), np.diff(histogram.edges)[0])


def test_the_heat_map_is_the_matrix_reordered_by_relation(run_folder):
    facts, matrix = run_folder.read_facts(), run_folder.read_interference()
    heat = heat_map(matrix, facts)
    relation = dict(zip(facts.column("fact_index").to_pylist(), facts.column("relation").to_pylist(), strict=True))
    shown = [relation[index] for index in heat.fact_index.tolist()]
    assert shown == sorted(shown)
    assert sum(count for _, _, count in heat.blocks) == len(shown)
    place = {index: row for row, index in enumerate(matrix.fact_index.tolist())}
    rows = [place[index] for index in heat.fact_index.tolist()]
    np.testing.assert_array_equal(heat.cosine, matrix.gradient_cosine()[np.ix_(rows, rows)])
    assert heat_map(matrix, facts, max_facts=10).cosine.shape == (10, 10)


@pytest.mark.parametrize("size", [0, 1])
def test_a_matrix_of_hardly_any_facts_is_no_error(run_folder, size):
    matrix = InterferenceMatrix(np.ones((size, size), np.float32), np.arange(size))
    assert heat_map(matrix, run_folder.read_facts()).cosine.shape == (size, size)


def test_the_worst_conflict_undoes_the_largest_share_of_its_victims_step(run_folder):
    facts, matrix = run_folder.read_facts(), run_folder.read_interference()
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
