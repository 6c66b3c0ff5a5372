"""What runs when the strategy has moved everything to the CPU already, where nccl cannot gather."""

import json
from pathlib import Path

import pytest
import torch
from lit_semantic_peft.callbacks import AdapterCheckpoint, AdapterExport, FactReport, InterferenceMonitor
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.training import SemanticPeftModule

from fixtures.processes import run_group
from fixtures.training import ONLY_FACTS, fit

pytestmark = pytest.mark.distributed


def work(tiny_model: Path, facts_file: Path, folder: Path) -> None:
    events: list[str] = []

    def noted(event, original):
        def function(*arguments, **options):
            events.append(event)
            return original(*arguments, **options)

        return function

    # gloo gathers on the CPU too: what counts is when, and after which move. Metrics gather through this function.
    torch.distributed.all_gather = noted("gather", torch.distributed.all_gather)
    for move in ("to", "cpu"):
        setattr(SemanticPeftModule, move, noted(move, getattr(SemanticPeftModule, move)))

    def run(ckpt_path=None):
        events.clear()
        fit(
            tiny_model,
            facts_file,
            data={"micro_batch_size": 2, "evaluation": ONLY_FACTS, "cache_dir": str(folder / "scores")},
            trainer={
                "devices": 2,
                "strategy": "ddp",
                "limit_val_batches": None,
                "enable_checkpointing": True,
                "default_root_dir": folder / "run",
            },
            callbacks=[InterferenceMonitor(num_facts=4), FactReport(), AdapterExport(), AdapterCheckpoint()],
            ckpt_path=ckpt_path,
        )
        at = events.index("cpu")  # the strategy's teardown
        return {"training": events[:at], "after": events[at + 1 :]}

    found = [run(), run(folder / "run" / "checkpoints" / "last.ckpt")]
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")


def test_metrics_gather_on_the_device_only(tiny_model, facts_file, tmp_path):
    run_group(work, 2, tmp_path, tiny_model, facts_file, tmp_path)
    for rank in range(2):
        trained, had_ended = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert "gather" in trained["training"]
        assert trained["after"] == []
        assert "gather" not in had_ended["training"]
        assert set(had_ended["after"][1:-1]) == {"gather"}
        assert (had_ended["after"][0], had_ended["after"][-1]) == ("to", "cpu")
    facts = RunFolder(tmp_path / "run").facts
    assert None not in facts["learned_at_end"].to_pylist()
    assert None not in facts["net_transfer"].to_pylist()
