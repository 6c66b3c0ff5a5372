"""Processes that share the facts of a gradient matrix make the rows of one matrix."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lit_semantic_peft.interference import feature_store, gradient_matrix, gradient_matrix_rows
from lit_semantic_peft.models.disk_space import DiskSpaceError
from tiny_models import batches_of, encoded_facts, tiny_llama, with_adapter

WORLD_SIZE = 2
SHARES = {"uneven": (5, 2), "one_has_none": (0, 4)}


def facts_with_a_bad_one():
    """The third fact's gradient is not finite."""
    facts = encoded_facts(7)
    clean = [
        type(fact)(*(tuple(i % 60 for i in part) for part in (fact.prompt_ids, fact.target_ids, (0,))))
        for fact in facts
    ]
    clean[2] = type(clean[2])((60, 3, 4), (5,), (0,))
    return clean


def model_with_a_bad_token():
    model = with_adapter(tiny_llama())
    model.get_input_embeddings().weight.data[60] = torch.inf
    return model


def _refuse(file, size, remedy):
    raise DiskSpaceError("no room on rank 1")


def _work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    try:
        model = model_with_a_bad_token()
        for name, counts in SHARES.items():
            facts = facts_with_a_bad_one()[: sum(counts)]
            mine = facts[: counts[0]] if rank == 0 else facts[counts[0] :]
            in_memory = gradient_matrix_rows(model, batches_of(mine, 2))
            on_disk = gradient_matrix_rows(model, batches_of(mine, 2), features_folder=folder)
            torch.save((dist.get_world_size(), in_memory, on_disk), f"{folder}/{name}-{rank}.pt")
        if rank == 1:
            feature_store.reserve = _refuse
        with pytest.raises(DiskSpaceError, match="no room on rank 1"):
            gradient_matrix_rows(model, batches_of(mine, 2), features_folder=folder)
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_over_gloo(tmp_path):
    assert dist.is_available(), "this test must run distributed; a torch without torch.distributed cannot pass it"
    mp.spawn(_work, args=(str(tmp_path),), nprocs=WORLD_SIZE, join=True)
    for name, counts in SHARES.items():
        facts = facts_with_a_bad_one()[: sum(counts)]
        expected = gradient_matrix(model_with_a_bad_token(), batches_of(facts, 2))
        saved = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(WORLD_SIZE)]
        assert [world_size for world_size, _, _ in saved] == [WORLD_SIZE] * WORLD_SIZE
        for which in (1, 2):
            assert [one[which][1] for one in saved] == [0, counts[0]]
            together = torch.cat([one[which][0] for one in saved])
            scale = expected.diagonal().nan_to_num().sqrt()
            torch.testing.assert_close(
                together / scale.clamp(min=1e-9)[:, None] / scale.clamp(min=1e-9)[None, :],
                expected / scale.clamp(min=1e-9)[:, None] / scale.clamp(min=1e-9)[None, :],
                equal_nan=True,
                rtol=0,
                atol=1e-5,
            )
            assert together[2].isnan().all()
            assert together[:, 2].isnan().all()


def test_without_a_process_group_it_says_what_to_use():
    with pytest.raises(RuntimeError, match="gradient_matrix"):
        gradient_matrix_rows(with_adapter(tiny_llama()), batches_of(encoded_facts(2), 2))
