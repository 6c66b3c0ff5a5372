"""Two processes say what one process says: by torchmetrics' own merge, and really, over gloo."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lit_semantic_peft.metrics import GradientInterference, LearningDynamics, MeanOverFacts, PerFactMean, PushedAway

NUM_FACTS = 7
WORLD_SIZE = 2


def value(seed=0):
    return torch.rand(NUM_FACTS, generator=torch.Generator().manual_seed(seed))


def rank_rows(rank):
    """Rows of a distributed sampler: every second fact, the first repeated to even out the ranks."""
    rows = list(range(NUM_FACTS)) + [0] * (-NUM_FACTS % WORLD_SIZE)
    return torch.tensor(rows[rank::WORLD_SIZE])


def matrix():
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return gradients @ gradients.T


def metrics():
    return {
        "per_fact": PerFactMean(NUM_FACTS),
        "recall": MeanOverFacts(NUM_FACTS),
        "pushed_away": PushedAway(NUM_FACTS),
        "interference": GradientInterference([6, 1, 3, 0], [1.0, 0.5, 2.0, 1.0], NUM_FACTS),
    }


def feed(objects, rows, matrix_rows):
    objects["per_fact"].update(value()[rows], rows)
    objects["recall"].update(value()[rows] > 0.5, rows)
    objects["pushed_away"].update(value()[rows], value(1)[rows], rows)
    objects["interference"].update(matrix()[matrix_rows], rows=matrix_rows)


def history(rows_of_epoch):
    """Dynamics over five epochs."""
    dynamics = LearningDynamics(NUM_FACTS)
    for epoch in range(5):
        rows = rows_of_epoch(epoch)
        dynamics.update(value(10 + epoch)[rows] > 0.5, rows)
        dynamics.end_validation()
    return dynamics


def results(objects):
    return {name: metric.compute() for name, metric in objects.items()}


def single_process():
    objects = metrics()
    feed(objects, torch.arange(NUM_FACTS), torch.arange(4))
    return results(objects) | {"dynamics": history(lambda epoch: torch.arange(NUM_FACTS)).compute()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        pairs = [(found[name], wanted)] if torch.is_tensor(wanted) else [(found[name][k], wanted[k]) for k in wanted]
        for left, right in pairs:
            torch.testing.assert_close(left, right, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def test_merging_the_states_of_two_ranks():
    ranks = [metrics() for _ in range(WORLD_SIZE)]
    for rank, objects in enumerate(ranks):
        feed(objects, rank_rows(rank), torch.arange(4)[rank::WORLD_SIZE])
    for name, metric in ranks[0].items():
        metric.merge_state(ranks[1][name])
    expected = single_process()
    del expected["dynamics"]
    assert_equal(results(ranks[0]), expected)


def _work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    try:
        objects = metrics()
        feed(objects, rank_rows(rank), torch.arange(4)[rank::WORLD_SIZE])
        # In epoch 3 one rank has nothing: end_validation is a collective all the same.
        dynamics = history(
            lambda epoch: torch.arange(NUM_FACTS)[: NUM_FACTS * (rank == 1)] if epoch == 3 else rank_rows(rank)
        )
        found = results(objects) | {"dynamics": dynamics.compute()}
        local = {name: getattr(dynamics, name) for name in ("first_learned", "is_recalled", "recalled_count")}
        torch.save((dist.get_world_size(), found, local), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_over_gloo(tmp_path):
    assert dist.is_available(), "this test must run distributed; a torch without torch.distributed cannot pass it"
    assert dist.is_gloo_available()
    mp.spawn(_work, args=(str(tmp_path),), nprocs=WORLD_SIZE, join=True)
    expected = single_process()
    saved = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD_SIZE)]
    for world_size, found, _ in saved:
        assert world_size == WORLD_SIZE
        assert_equal(found, expected)
    # The states themselves are alike, so that rank 0's checkpoint is everyone's.
    for name in saved[0][2]:
        assert torch.equal(saved[0][2][name], saved[1][2][name])
