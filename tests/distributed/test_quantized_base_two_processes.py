"""A base model in few bits under two processes: the same steps as in one, up to rounding in bfloat16."""

import importlib.util

import numpy as np
import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder
from safetensors.numpy import load_file

from fixtures.processes import run_commands

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"),
]

ROUNDING = 0.1
"""Of the factors that start at zero, relative to their norm."""


@pytest.mark.parametrize("dtype", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_two_processes_train_as_one(dtype, tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    # SGD: where a gradient is almost zero, rounding decides the sign of AdamW's whole step.
    fit = [
        *("fit", f"--model.base_model={tiny_model}", f"--model.base_model.dtype={dtype}", "--recipe=plain"),
        *(f"--data.facts={facts_file}", "--data.evaluation={probes: [], retention: false}"),
        *("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.5", "--interference.num_facts=0"),
        *("--trainer.accelerator=cpu", "--trainer.max_epochs=3", "--trainer.enable_progress_bar=false"),
    ]
    # 12 facts in steps of 8: a whole step, and a partial one that leaves the ranks unequal work.
    one, two = (
        [*fit, f"--trainer.devices={number}", f"--trainer.strategy={strategy}",
         f"--data.batches.micro_batch_size={8 // number}", f"--trainer.default_root_dir=runs/{number}"]
        for number, strategy in ((1, "auto"), (2, "ddp"))
    )  # fmt: skip
    assert main(one) == 0
    run_commands(2, two)
    left, right = (load_file(f"runs/{number}/adapter/adapter_model.safetensors") for number in (1, 2))
    assert left.keys() == right.keys()
    for key in left:
        if "lora_B" in key:
            assert np.linalg.norm(left[key] - right[key]) <= ROUNDING * np.linalg.norm(left[key]), key
    losses = [[epoch.loss for epoch in RunFolder(f"runs/{number}").summary.epochs] for number in (1, 2)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[0][-1] < losses[0][0] - 1
