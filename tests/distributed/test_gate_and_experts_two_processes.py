"""A gate, experts and LoRA at names under two processes: trained and asked as in one."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.adapters.anchors import ANCHORS_FILE
from lit_semantic_peft.models.export import GATE_FILE
from lit_semantic_peft.reports import RunFolder
from safetensors.numpy import load_file

from fixtures.processes import run_commands

pytestmark = pytest.mark.distributed

GATE = {"gate": {"class_path": "lit_semantic_peft.adapters.SubjectGate"}}
EXPERTS = {
    "peft_config": {
        "class_path": "lit_semantic_peft.adapters.KnowledgeMoEConfig",
        # Without noise, which each process draws for itself, as it does dropout; a balance that is felt.
        "init_args": {"r": 4, "num_experts": 3, "router_noise": 0.0, "balance": 1.0, "target_modules": "all-linear"},
    }
}
AT_NAMES = {
    "peft_config": {
        "class_path": "lit_semantic_peft.adapters.SubjectLoraConfig",
        "init_args": {"r": 4, "match": "subjects", "target_modules": "all-linear"},
    }
}
PROMPTS = ["The capital of Aro is", "The capital of Japan is", "The river of the town of Belvan is", "It is the", "In"]


def answers(folder: str) -> dict[str, str]:
    lines = Path(folder, "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["prompt"]: row["answer"] for row in map(json.loads, lines)}


@pytest.mark.parametrize(
    "guarded",
    [pytest.param(GATE, marks=pytest.mark.long), EXPERTS, AT_NAMES],
    ids=["gate", "experts", "names"],
)
def test_two_processes_train_and_answer_as_one(guarded, tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    weighting = {"class_path": "lit_semantic_peft.semantics.Remoteness", "init_args": {"gamma": 8}}
    settings = {
        "recipe": "plain",
        "model": {
            "base_model": str(tiny_model),
            # No step of AdamW's: it makes large ones of gradients that are almost zero, as the router's are at first.
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
            **guarded,
        },
        "data": {
            "facts": str(facts_file),
            "selection": {"weighting": weighting},
            "evaluation": {"probes": ["neighborhood"]},
        },
        "interference": {"num_facts": 0},
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False},
    }
    Path("guarded.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    one, two = (
        ["--config=guarded.yaml", f"--trainer.devices={number}", f"--trainer.strategy={strategy}",
         f"--data.batches.micro_batch_size={8 // number}"]
        for number, strategy in ((1, "auto"), (2, "ddp"))
    )  # fmt: skip
    # 12 facts in steps of 8: a whole step, and a partial one that leaves the ranks unequal work.
    assert main(["fit", *one, "--trainer.default_root_dir=runs/one"]) == 0
    asked = ["--model.adapter=runs/two/adapter", f"--data.prompts={json.dumps(PROMPTS)}"]
    run_commands(
        2,
        ["fit", *two, "--trainer.default_root_dir=runs/two"],
        ["predict", *two, *asked, "--trainer.default_root_dir=runs/both"],
    )
    left, right = (load_file(f"runs/{name}/adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert left.keys() == right.keys()
    for key in left:
        assert np.linalg.norm(left[key] - right[key]) <= 1e-3 * np.linalg.norm(left[key]) + 1e-9, key
    file = GATE_FILE if guarded is GATE else ANCHORS_FILE
    names = [json.loads(Path("runs", name, "adapter", file).read_text(encoding="utf-8")) for name in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]["names"]) == 12
    for name in ("one", "two"):  # what names nothing taught has not moved, in either
        summary = RunFolder(f"runs/{name}").summary
        guards = summary.gate if guarded is GATE else summary
        assert guards.retention.nll_delta.mean == guards.retention.nll_delta.high == 0
        assert guards.score("locality").kept.after.mean == 1
        rows = RunFolder(f"runs/{name}").facts.to_pylist()
        assert sum(row["nll_after"] - row["nll_before"] for row in rows) < (0 if guarded is AT_NAMES else -0.5)
    assert main(["predict", *one, *asked, "--trainer.default_root_dir=runs/alone"]) == 0
    assert answers("runs/both") == answers("runs/alone")
    assert len(answers("runs/both")) == len(PROMPTS)
