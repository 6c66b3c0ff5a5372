import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_cosine
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.tables import (
    FACT_COLUMNS,
    PROBE_COLUMNS,
    merge_previous,
    read_interference,
    read_table,
    write_fact_table,
    write_interference,
    write_probe_table,
)

REQUIRED = {"fact_id": ["a", "b"], "prompt": ["p", "q"], "target": ["s", "t"]}


def test_a_fact_table_keeps_values_types_and_descriptions(tmp_path):
    path = tmp_path / "deep" / "facts.parquet"
    write_fact_table(
        path,
        REQUIRED
        | {
            "fact_index": np.array([0, 1]),
            "kept": np.array([True, False]),
            "distance": np.array([0.25, np.nan], dtype=np.float32),
            "first_learned_epoch": [np.int64(3), None],
            "distance_HiddenStateDistance": [0.5, 0.75],
        },
    )
    table = pq.read_table(path)
    assert table.column("distance").to_pylist() == [0.25, None]
    assert table.column("kept").to_pylist() == [True, False]
    assert table.column("first_learned_epoch").to_pylist() == [3, None]
    assert table.column("distance_HiddenStateDistance").to_pylist() == [0.5, 0.75]
    assert table.column("net_transfer").to_pylist() == [None, None]
    for column in FACT_COLUMNS:
        field = table.schema.field(column.name)
        assert field.type == column.type
        assert field.metadata[b"description"].decode() == column.description
    assert [p.name for p in path.parent.iterdir()] == ["facts.parquet"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (REQUIRED | {"weight": [1.0, 1.0]}, "unknown column.*weight"),
        (REQUIRED | {"distance": [1.0]}, "lengths"),
        ({"fact_id": ["a"], "prompt": ["p"]}, "missing column.*target"),
        (REQUIRED | {"target": ["s", None]}, "`target` must have a value"),
        (REQUIRED | {"fact_id": ["a", "a"]}, "unique.*'a'"),
        (REQUIRED | {"kept": ["yes", "no"]}, "`kept` must hold bool"),
    ],
)
def test_a_wrong_fact_table_is_refused_and_nothing_is_written(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        write_fact_table(tmp_path / "facts.parquet", columns)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_table_can_be_written(tmp_path):
    write_probe_table(tmp_path / "probes.parquet", {column.name: [] for column in PROBE_COLUMNS})
    assert len(read_table(tmp_path / "probes.parquet", PROBE_COLUMNS)) == 0


def test_an_earlier_table_fills_only_columns_that_are_known_and_were_not_measured_now():
    earlier = pa.table({"fact_id": ["a"], "recalled_before": [True], "distance_Own": [0.5], "net_transfer": [-2.0]})
    found = merge_previous({"fact_id": ["a"], "net_transfer": [1.0], "distance": [3.0]}, earlier)
    assert found == {"fact_id": ["a"], "net_transfer": [1.0], "distance": [3.0], "distance_Own": [0.5]}


def test_reading_fills_missing_optional_columns_and_names_missing_required_ones(tmp_path):
    path = tmp_path / "facts.parquet"
    pq.write_table(pa.table(REQUIRED), path)
    assert read_table(path, FACT_COLUMNS).column("distance").to_pylist() == [None, None]
    pq.write_table(pa.table(REQUIRED | {"relation": pa.array(["r", None], pa.large_string())}), path)
    assert read_table(path, FACT_COLUMNS).schema.field("relation").type == pa.string()
    pq.write_table(pa.table(REQUIRED | {"kept": ["perhaps", "no"]}), path)
    with pytest.raises(InputError, match="expected bool in column `kept`"):
        read_table(path, FACT_COLUMNS)
    pq.write_table(pa.table({"fact_id": ["a"]}), path)
    with pytest.raises(InputError, match="expected a column `prompt`"):
        read_table(path, FACT_COLUMNS)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="expected a Parquet file"):
        read_table(path, FACT_COLUMNS)


def test_the_interference_matrix_comes_back_with_its_step(tmp_path):
    path = tmp_path / "interference.safetensors"
    dot = np.array([[4.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    write_interference(path, dot, [5, 2, 9], epoch=3, global_step=17)
    matrix = read_interference(path)
    assert matrix.gradient_dot.dtype == np.float32
    np.testing.assert_array_equal(matrix.gradient_dot, dot)
    assert matrix.fact_index.tolist() == [5, 2, 9]
    assert (matrix.epoch, matrix.global_step) == (3, 17)
    # The third gradient is zero: its cosines are not defined, as in the metrics; without a warning.
    nan = np.nan
    np.testing.assert_allclose(matrix.gradient_cosine(), [[1, -0.5, nan], [-0.5, 1, nan], [nan, nan, nan]])
    in_the_metrics = gradient_cosine(torch.tensor(dot))
    np.testing.assert_array_equal(matrix.gradient_cosine(), in_the_metrics.numpy())


def test_a_gradient_that_is_not_finite_is_not_measured(tmp_path):
    path = tmp_path / "interference.safetensors"
    write_interference(path, [[1.0, np.nan], [np.nan, np.nan]], [0, 1])
    cosine = read_interference(path).gradient_cosine()
    assert cosine[0, 0] == 1
    assert np.isnan(cosine[0, 1])


def test_a_matrix_of_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(k, k\)"):
        write_interference(tmp_path / "m", np.zeros((2, 3)), [0, 1])
    (tmp_path / "broken").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match="gradient_dot"):
        read_interference(tmp_path / "broken")


def test_a_missing_file_names_itself_and_the_command_that_makes_it(tmp_path, run_folder):
    with pytest.raises(InputError, match=r"expected a run folder.*fit --config"):
        _ = RunFolder(tmp_path / "nowhere").facts
    run_folder.paths.summary.unlink()
    with pytest.raises(InputError, match=r"`summary.json` is missing.*lit-semantic-peft fit"):
        _ = run_folder.summary


def test_an_empty_folder_is_free(tmp_path, run_folder):
    assert not RunFolder(tmp_path / "nowhere").is_used()
    (tmp_path / "empty").mkdir()
    assert not RunFolder(tmp_path / "empty").is_used()
    assert run_folder.is_used()
