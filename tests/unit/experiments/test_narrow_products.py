"""What one product for several A matrices saves is measured against all products of a layer."""

import json

from experiments.benchmarks import narrow_products


def test_the_saving_is_a_share_of_all_products(tmp_path):
    narrow_products.main(["--tokens", "16", "--repetitions", "1", f"--results={tmp_path}"])
    found = json.loads((tmp_path / "narrow_products.json").read_text(encoding="utf-8"))["by_tokens"]["16"]
    whole = found["apart"] + found["base"] + found["others"]
    assert found["saved_share"] == (found["apart"] - found["one"]) / whole
    layer = 4 * 16 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
    assert found["base_gflops"] == layer / found["base"] / 1e3
