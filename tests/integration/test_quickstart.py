"""The quickstart on the real model: what the README promises of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.tokens import FactEncoder
from peft import PeftModel

pytestmark = pytest.mark.integration

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("quickstart")
    cache = folder / "cache"  # a fresh one: the conversion is part of what a newcomer meets
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lit_semantic_peft",
            "fit",
            "--config",
            str(QUICKSTART),
            "--trainer.default_root_dir=run",
            # By their own prompts alone facts are recalled in half of the steps that the recipe takes.
            "--data.num_facts=40",
            "--recipe=plain",
            "--trainer.max_epochs=8",
            "--interference.num_facts=16",
            "--interference.every_n_epochs=4",
        ],
        cwd=folder,
        env={**os.environ, "LIT_SEMANTIC_PEFT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run/report.html" in done.stdout
    return RunFolder(folder / "run")


def test_the_kept_facts_are_recalled_and_were_unknown_before(run):
    summary = run.summary
    assert summary.num_kept >= 25
    assert summary.dropped_by_reason["already_known"] > 0
    generated, forced = (summary.score(name).kept for name in ("efficacy", "efficacy_teacher_forced"))
    assert forced.before.mean == 0
    assert forced.after.mean >= 0.9
    assert generated.after.mean >= 0.9
    assert summary.score("locality").kept.after is not None
    rows = run.probes.to_pylist()
    neighbours = [row for row in rows if row["kind"] == "neighborhood"]
    assert len(neighbours) >= summary.num_facts
    assert all(row["answer_before"] is not None and row["answer_after"] is not None for row in neighbours)


def test_it_stays_within_memory_and_measures_interference_as_it_grows(run):
    summary = run.summary
    assert summary.peak_memory_gb < 4
    assert [record.epoch for record in summary.interference] == [0, 4, 8]
    assert summary.interference[-1].conflict_rate > summary.interference[0].conflict_rate


def test_the_exported_adapter_loads_by_plain_peft(run, monkeypatch):
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(run.path.parent / "cache"))
    base_model = BaseModel()
    encoder = FactEncoder(base_model.load_tokenizer())
    rows = [row for row in run.facts.to_pylist() if row["kept"]][:8]
    base = base_model.load()
    ids = [torch.tensor([[*encoder.encode_prompt(row["prompt"])]]) for row in rows]
    with torch.no_grad():
        before = [base(one).logits[0, -1] for one in ids]
        model = PeftModel.from_pretrained(base, str(run.paths.adapter)).eval()
        after = [model(one).logits[0, -1] for one in ids]
    assert all(not torch.allclose(left, right, atol=1e-2) for left, right in zip(before, after, strict=True))
    # The table's likelihoods come from the trained module; plain PEFT must give them too.
    for row, one in zip(rows, ids, strict=True):
        encoded = encoder.encode(row["prompt"], row["target"])
        whole = torch.tensor([[*encoded.prompt_ids, *encoded.target_ids]])
        with torch.no_grad():
            log_probability = model(whole).logits[0, one.shape[1] - 1 : -1].log_softmax(dim=-1)
        nll = -log_probability[range(len(encoded.target_ids)), list(encoded.target_ids)].mean()
        assert float(nll) == pytest.approx(row["nll_after"], abs=1e-4)
