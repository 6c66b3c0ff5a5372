"""Two ranks add up to the loss weights that one process used."""

from itertools import chain

import pytest
import torch
import torch.distributed as dist
from lit_semantic_peft.semantics import Online, Proximity, Remoteness, Scheduled
from lit_semantic_peft.training import InterferenceWeighting

from fixtures.facts import write_facts
from fixtures.processes import run_group
from fixtures.training import fit

pytestmark = pytest.mark.distributed

FAR = Remoteness(gamma=8.0)
WEIGHTINGS = {
    "static": FAR,
    "scheduled": Scheduled(Proximity(), FAR),
    "online": Online(FAR),
    "interference": FAR,
    "interference over online": Online(FAR),
}


def run(tiny_model, facts_file, kind, micro_batch_size, **trainer):
    return fit(
        tiny_model,
        facts_file,
        data={"weighting": WEIGHTINGS[kind], "micro_batch_size": micro_batch_size, "num_facts": 11},
        trainer={"max_epochs": 3, **trainer},
        callbacks=[InterferenceWeighting(beta=0.0, every_n_steps=2)] if kind.startswith("interference") else [],
    )


def in_group(tiny_model, facts_file, folder):
    """Steps of 4 of 11 facts: the last one has 3, and a filler on the second rank."""
    used = {}
    for kind in WEIGHTINGS:
        done = run(tiny_model, facts_file, kind, 1, accumulate_grad_batches=2, devices=2, strategy="ddp")
        used[kind] = done.module.loss_weights.used()
    torch.save(used, folder / f"{dist.get_rank()}.pt")


def test_two_ranks_have_the_means_of_one(tiny_model, tmp_path):
    facts_file = write_facts(tmp_path / "facts.jsonl")
    run_group(in_group, 2, tmp_path, tiny_model, facts_file, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    for kind in WEIGHTINGS:
        done = run(tiny_model, facts_file, kind, 4)
        assert sorted(chain(*done.facts)) == sorted([*range(11)] * 3)
        used = done.module.loss_weights.used()
        if kind in ("static", "scheduled"):
            assert first[kind] == used
        else:  # factors that are measured differ in rounding
            assert first[kind] == pytest.approx(used, rel=1e-4)
