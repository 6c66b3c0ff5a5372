"""The benchmark of LoRA's fused layers runs, and compares gradients of the same step."""

import json

from experiments.benchmarks import fused_lora
from lit_semantic_peft.models.fused_lora import separate_lora


def test_both_ways_are_timed_in_turn(tmp_path, monkeypatch):
    arguments = ["--tiny", "--num_facts", "32", "--repetitions", "3", "--output", str(tmp_path)]
    fused_lora.main(arguments)
    result = json.loads((tmp_path / "fused_lora.json").read_text(encoding="utf-8"))
    peft, fused = (result["processor_seconds"][way] for way in ("peft", "fused"))
    assert len(peft) == len(fused) == 3
    assert result["faster_by"]["max"] == max(a / b for a, b in zip(peft, fused, strict=True))
    assert 0 < result["largest_difference"] < 1e-5
    monkeypatch.setitem(fused_lora.WAYS, "fused", separate_lora)
    fused_lora.main(arguments)
    result = json.loads((tmp_path / "fused_lora.json").read_text(encoding="utf-8"))
    assert result["largest_difference"] == 0  # so the difference above shows that the fused layers ran
