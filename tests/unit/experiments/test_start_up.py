"""The benchmark of start-up runs, and refuses to time a call that ends otherwise than it should."""

import json

import pytest
from experiments.benchmarks import start_up


def test_the_benchmark_runs(monkeypatch, tmp_path, capsys):
    quick = {name: call for name, call in start_up.CALLS.items() if name != start_up.ONCE}
    monkeypatch.setattr(start_up, "CALLS", quick)
    monkeypatch.setattr("sys.argv", ["start_up", "--repetitions=1", f"--output={tmp_path}"])
    start_up.main()
    calls = json.loads((tmp_path / "start_up.json").read_text(encoding="utf-8"))["calls"]
    assert [row["call"] for row in calls] == list(quick)
    assert all(0 < row["median_s"] <= row["longest_s"] for row in calls)
    monkeypatch.setattr(start_up, "CALLS", {"help": (["--help"], 2)})
    with pytest.raises(SystemExit, match="ended with 0, not 2"):
        start_up.measure(1)
