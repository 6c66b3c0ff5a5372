import itertools
from collections import Counter

import numpy as np
import pytest
from lit_semantic_peft.data.samplers import MicroBatch, RankShard, StepPlan
from torch.utils.data import DataLoader, DistributedSampler

EIGHT = [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2), (4, 1, 2), (1, 4, 2), (1, 2, 4), (1, 1, 8), (2, 1, 4)]


def facts(num_facts, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.permutation(10 * num_facts)[:num_facts].tolist()  # indices with gaps, as after a filter
    return rows, generator.integers(3, 60, num_facts).tolist()


def plans(num_facts, cut, epoch=0, **settings):
    micro_batch_size, accumulate, world_size = cut
    rows, lengths = facts(num_facts)
    out = []
    for rank in range(world_size):
        plan = StepPlan(
            rows,
            lengths,
            micro_batch_size=micro_batch_size,
            accumulate_grad_batches=accumulate,
            world_size=world_size,
            rank=rank,
            **settings,
        )
        plan.set_epoch(epoch)
        out.append(plan)
    return out


def steps_over_ranks(ranks):
    """The facts of each optimizer step, all ranks together, as the trainer cuts them; fillers left out."""
    accumulate = ranks[0].accumulate_grad_batches
    steps = [
        [row for one in micro_batches for row in one.rows[: len(one.rows) - one.num_fillers]]
        for micro_batches in zip(*ranks, strict=True)  # strict: every rank yields equally many
    ]
    return [sorted(itertools.chain(*steps[at : at + accumulate])) for at in range(0, len(steps), accumulate)]


@pytest.mark.parametrize("num_facts", [1, 3, 7, 8, 9, 16, 61, 64])
@pytest.mark.parametrize("cut", EIGHT, ids=str)
def test_the_same_facts_are_in_the_same_step_however_they_are_cut(cut, num_facts):
    for epoch in (0, 1):
        ranks = plans(num_facts, cut, epoch, bucket_steps=3)
        steps = steps_over_ranks(ranks)
        assert steps == steps_over_ranks(plans(num_facts, (8, 1, 1), epoch, bucket_steps=3))
        assert sorted(itertools.chain(*steps)) == sorted(facts(num_facts)[0]), "every fact once"
        assert [len(step) for step in steps[:-1]] == [8] * (len(steps) - 1), "only the last step is partial"
        assert len(steps) == -(-num_facts // 8)
        assert [len(list(plan)) for plan in ranks] == [len(plan) for plan in ranks]


def test_random_cuts_hold_too():
    generator = np.random.default_rng(5)
    for _ in range(60):
        cut = tuple(generator.integers(1, 5, 3).tolist())
        num_facts = int(generator.integers(1, 90))
        settings = {"seed": int(generator.integers(100)), "bucket_steps": int(generator.integers(1, 6))}
        ranks = plans(num_facts, cut, **settings)
        steps = steps_over_ranks(ranks)
        product = cut[0] * cut[1] * cut[2]
        assert steps == steps_over_ranks(plans(num_facts, (product, 1, 1), **settings))
        assert Counter(itertools.chain(*steps)) == Counter(facts(num_facts)[0])
        for plan in ranks:
            batches = list(plan)
            assert len(batches) == len(plan)
            assert all(0 < len(one.rows) <= cut[0] for one in batches)


def test_a_rank_without_a_fact_gets_a_filler():
    ranks = plans(3, (2, 1, 4))
    batches = [list(plan) for plan in ranks]
    assert [[len(one.rows) for one in mine] for mine in batches] == [[1], [1], [1], [1]]
    assert [mine[0].num_fillers for mine in batches] == [0, 0, 0, 1]
    assert batches[3][0].rows[0] in facts(3)[0]


def test_no_filler_where_none_is_needed():
    for cut in EIGHT:
        assert all(one.num_fillers == 0 for plan in plans(64, cut) for one in plan)


def test_epochs_differ_and_a_seed_reproduces():
    def order(epoch, seed):
        return [one.rows for one in plans(64, (4, 2, 1), epoch, seed=seed)[0]]

    assert order(0, 7) == order(0, 7)
    all_orders = [order(epoch, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(one) for one in all_orders}) == 9


def test_an_epoch_does_not_depend_on_the_one_before():
    plan = plans(64, (4, 2, 1))[0]
    list(plan)
    plan.set_epoch(5)
    assert list(plan) == list(plans(64, (4, 2, 1), epoch=5)[0])


def padding(plan, rows, lengths):
    length_of = dict(zip(rows, lengths, strict=True))
    batches = [[length_of[row] for row in one.rows] for one in plan]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


def test_bucketing_saves_padding_and_loses_no_fact():
    rows, lengths = facts(512)
    wasted = {}
    for bucket_steps in (1, 8):
        plan = plans(512, (16, 1, 1), bucket_steps=bucket_steps)[0]
        assert sorted(row for one in plan for row in one.rows) == sorted(rows)
        wasted[bucket_steps] = padding(plan, rows, lengths)
    assert wasted[8] < 0.3 * wasted[1]


def test_steps_come_in_no_order_of_length():
    rows, lengths = facts(512)
    length_of = dict(zip(rows, lengths, strict=True))
    means = [np.mean([length_of[row] for row in one.rows]) for one in plans(512, (16, 1, 1), bucket_steps=32)[0]]
    assert means != sorted(means)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5


def test_lightning_and_the_loader_take_the_plan_as_it_is():
    plan = plans(9, (4, 1, 2))[0]
    assert isinstance(plan, DistributedSampler)

    class Echo:
        def __getitem__(self, micro_batch):
            assert isinstance(micro_batch, MicroBatch)
            return micro_batch

    loader = DataLoader(Echo(), sampler=plan, batch_size=None)
    assert len(loader) == len(plan) == 2
    assert list(loader) == list(plan)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_rows", [1, 4, 23, 24])
def test_a_shard_covers_every_row_and_every_rank_runs_equally_often(num_rows, world_size):
    rows, lengths = facts(num_rows)
    shards = [RankShard(rows, lengths, batch_size=4, world_size=world_size, rank=rank) for rank in range(world_size)]
    batches = [list(shard) for shard in shards]
    assert len({len(mine) for mine in batches}) == 1
    assert [len(shard) for shard in shards] == [len(mine) for mine in batches]
    seen = Counter(row for mine in batches for one in mine for row in one.rows)
    assert seen.keys() == set(rows)
    if world_size == 1:
        assert set(seen.values()) == {1}
    assert sum(len(mine) for mine in batches) - -(-num_rows // 4) < world_size, "no more repeats than needed"


def test_a_shard_begins_with_the_longest():
    rows, lengths = facts(40)
    length_of = dict(zip(rows, lengths, strict=True))
    ordered = [length_of[row] for one in RankShard(rows, lengths, batch_size=4) for row in one.rows]
    assert ordered == sorted(lengths, reverse=True)


@pytest.mark.parametrize("cut", EIGHT, ids=str)
def test_mixed_steps_hold_each_labels_share(cut):
    rows, _ = facts(64)
    label = dict(zip(rows, (["Unknown"] * 40 + ["MaybeKnown"] * 16 + ["HighlyKnown"] * 8), strict=True))
    for epoch in (0, 1):
        steps = steps_over_ranks(plans(64, cut, epoch, mix=[label[row] for row in rows]))
        assert sorted(itertools.chain(*steps)) == sorted(rows)
        assert steps == steps_over_ranks(plans(64, (8, 1, 1), epoch, mix=[label[row] for row in rows]))
        for step in steps:
            count = Counter(label[row] for row in step)
            assert abs(count["Unknown"] - 5) <= 1
            assert abs(count["MaybeKnown"] - 2) <= 1
            assert abs(count["HighlyKnown"] - 1) <= 1
    first, second = (steps_over_ranks(plans(64, cut, e, mix=[label[row] for row in rows])) for e in (0, 1))
    assert first != second


def test_progress_runs_from_zero_to_one_whatever_the_cut():
    for cut in EIGHT:
        seen = [
            [one.progress for one in list(plan)[:: plan.accumulate_grad_batches]]
            for epoch in range(3)
            for plan in plans(61, cut, epoch, max_epochs=3)[:1]
        ]
        np.testing.assert_allclose(np.concatenate(seen), np.linspace(0, 1, 24))
    assert {one.progress for one in plans(61, (8, 1, 1))[0]} == {0.0}
    for ends, num_steps in (
        ({"max_epochs": -1, "max_steps": 6}, 6),
        ({"max_epochs": 3, "max_steps": 6}, 6),
        ({"max_epochs": 3, "max_steps": 100}, 24),
    ):
        (plan,) = plans(61, (8, 1, 1), **ends)
        found = [plan.progress_at(step) for step in range(num_steps)]
        np.testing.assert_allclose(found, np.linspace(0, 1, num_steps))
    assert {one.progress for one in plans(5, (8, 1, 1), max_epochs=1)[0]} == {0.0}


@pytest.mark.parametrize("num_deferred", [1, 8, 30])
@pytest.mark.parametrize("cut", EIGHT, ids=str)
def test_deferred_facts_come_with_their_epoch(cut, num_deferred):
    rows, _ = facts(61)
    deferred = rows[::2][:num_deferred]
    settings = {"deferred": deferred, "deferred_from_epoch": 2, "max_epochs": 5}
    progress, num_steps = [], 0
    for epoch in range(5):
        ranks = plans(61, cut, epoch, **settings)
        steps = steps_over_ranks(ranks)
        expected = rows if epoch >= 2 else [row for row in rows if row not in deferred]
        assert sorted(itertools.chain(*steps)) == sorted(expected) == sorted(ranks[0].rows(epoch))
        assert [len(list(plan)) for plan in ranks] == [len(plan) for plan in ranks]
        assert steps == steps_over_ranks(plans(61, (8, 1, 1), epoch, **settings))
        assert ranks[0].steps_before(epoch) == num_steps
        progress += [one.progress for one in list(ranks[0])[:: ranks[0].accumulate_grad_batches]]
        num_steps += len(steps)
    assert plans(61, cut, **settings)[0].steps_before(5) == num_steps
    np.testing.assert_allclose(progress, np.linspace(0, 1, num_steps))
