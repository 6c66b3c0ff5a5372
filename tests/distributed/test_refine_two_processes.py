"""Two ranks find the same facts that resist as one process, train the same second pass, and scale back alike."""

import pytest
import torch
import torch.distributed as dist
from lit_semantic_peft.callbacks import Refine, ScaleBack

from fixtures.facts import write_facts
from fixtures.processes import run_group
from fixtures.training import Trajectory, assert_same_trajectory, fit

pytestmark = [pytest.mark.distributed, pytest.mark.long]


def run(tiny_model, facts_file, micro_batch_size, **trainer):
    """Steps of 4 of 11 facts: every third has 3, and a filler on the second rank."""
    refine, scale_back = Refine(num_steps=3), ScaleBack(tolerance=0.5, lowest=0.8)
    done = fit(
        tiny_model,
        facts_file,
        data={"micro_batch_size": micro_batch_size, "num_facts": 11},
        trainer={"max_epochs": None, "max_steps": 37, **trainer},
        callbacks=[refine, scale_back],
    )
    return Trajectory(done.losses, done.norms, done.adapter), refine.resisting, scale_back.scale


def in_group(tiny_model, facts_file, folder):
    trajectory, *found = run(tiny_model, facts_file, 1, accumulate_grad_batches=2, devices=2, strategy="ddp")
    torch.save((vars(trajectory), found), folder / f"{dist.get_rank()}.pt")


def test_the_second_pass_is_that_of_one_process(tiny_model, tmp_path):
    facts_file = write_facts(tmp_path / "facts.jsonl")
    run_group(in_group, 2, tmp_path, tiny_model, facts_file, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    trajectory, resisting, scale = run(tiny_model, facts_file, 4)
    assert 0 < len(resisting) < 11
    assert scale < 1
    assert [one[1] for one in ranks] == [[resisting, scale]] * 2
    for one, _ in ranks:
        assert_same_trajectory(Trajectory(**one), trajectory, tolerance=5e-3)
