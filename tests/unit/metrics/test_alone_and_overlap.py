import numpy as np
import pytest
import torch
from lit_semantic_peft.metrics import AloneVersusTogether, KeyOverlap, distance_decile, group_interference


def test_alone_versus_together():
    metric = AloneVersusTogether(num_facts=5, steps_together=40, steps_alone=8)
    metric.update(torch.tensor([-3.0, -1.0]), torch.tensor([-1.0, -2.0]), torch.tensor([4, 1]))
    metric.update(torch.tensor([-5.0]), torch.tensor([-1.0]), torch.tensor([4]))  # again, by another rank
    result = metric.compute()
    torch.testing.assert_close(
        result["difference"], torch.tensor([torch.nan, 1.0, torch.nan, torch.nan, -3.0]), equal_nan=True
    )
    assert result["mean"] == -1.0
    assert result["share_below_0"] == 0.5
    assert (int(result["steps_together"]), int(result["steps_alone"])) == (40, 8)
    with pytest.raises(ValueError, match="`steps_alone`"):
        AloneVersusTogether(2, 1, -1)


@pytest.mark.filterwarnings("error")
def test_alone_versus_together_without_measurements():
    result = AloneVersusTogether(2, 1, 1).compute()
    assert result["difference"].isnan().all()
    assert result["mean"].isnan()
    assert result["share_below_0"].isnan()


@pytest.mark.filterwarnings("error")
def test_key_overlap_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    keys, corpus = torch.randn(6, 5, generator=generator), torch.randn(40, 5, generator=generator)
    keys[3] = 0
    metric = KeyOverlap(num_facts=7, dimension=5, ridge=0.3)
    metric.update(keys[:4], torch.arange(4))
    metric.update(keys[4:], torch.tensor([5, 4]))
    for part in corpus.split(16):
        metric.update_corpus(part.T @ part, len(part))
        found = metric.compute()  # also of a part: the next one must not find the earlier result
    moment = (corpus.T @ corpus / 40).double().numpy()
    inverse = np.linalg.inv(moment + 0.3 * np.trace(moment) / 5 * np.eye(5))
    rows = {0: 0, 1: 1, 2: 2, 5: 4, 4: 5}
    for i, at_i in rows.items():
        for j, at_j in rows.items():
            left, right = keys[at_i].double().numpy(), keys[at_j].double().numpy()
            expected = left @ inverse @ right / np.sqrt((left @ inverse @ left) * (right @ inverse @ right))
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-5)
    assert found[3].isnan().all()  # a key of zeros
    assert found[6].isnan().all()  # never measured
    assert found.shape == (7, 7)


def test_key_overlap_says_what_is_missing():
    metric = KeyOverlap(2, 3)
    metric.update(torch.ones(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match="update_corpus"):
        metric.compute()
    for wrong in (
        lambda: metric.update(torch.ones(2, 4), torch.arange(2)),
        lambda: metric.update_corpus(torch.eye(2), 1),
    ):
        with pytest.raises(ValueError, match="shape"):
            wrong()
    with pytest.raises(ValueError, match="`ridge`"):
        KeyOverlap(2, 3, ridge=0.0)


@pytest.mark.filterwarnings("error")
def test_groups_against_plain_loops():
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(9, 4, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(gradients[:, None], gradients[None], dim=2)
    cosine[5] = cosine[:, 5] = torch.nan
    transfer = torch.randn(9, generator=generator) * 2
    transfer[5] = torch.nan
    harm = torch.rand(9, generator=generator)
    member = torch.tensor([True, True, False, True, False, True, False, False, True])
    found = group_interference(cosine, transfer, harm, member, threshold=0.1)
    inside = [i for i in range(9) if member[i] and i != 5]
    outside = [i for i in range(9) if not member[i]]
    within = [float(cosine[i, j]) < -0.1 for i in inside for j in inside if i < j]
    across = [float(cosine[i, j]) < -0.1 for i in inside for j in outside]
    assert found["num_facts"] == 5
    assert found["conflict_rate_within"] == pytest.approx(sum(within) / len(within))
    assert found["conflict_rate_across"] == pytest.approx(sum(across) / len(across))
    assert found["net_transfer_median"] == pytest.approx(float(np.median(transfer[inside].numpy())))
    assert found["share_net_transfer_below_minus_1"] == pytest.approx(float((transfer[inside] < -1).float().mean()))
    assert found["share_of_harm_done"] == pytest.approx(float(harm[member].sum() / harm.sum()))


@pytest.mark.filterwarnings("error")
def test_a_group_of_one_a_group_of_all_and_no_harm():
    cosine = torch.eye(2)
    one = group_interference(cosine, torch.zeros(2), torch.zeros(2), torch.tensor([True, False]))
    assert np.isnan(one["conflict_rate_within"])
    assert one["conflict_rate_across"] == 0
    assert np.isnan(one["share_of_harm_done"])
    everyone = group_interference(cosine, torch.zeros(2), torch.ones(2), torch.tensor([True, True]))
    assert np.isnan(everyone["conflict_rate_across"])
    assert everyone["share_of_harm_done"] == 1


def test_deciles_are_even_and_ordered():
    distance = torch.rand(57, generator=torch.Generator().manual_seed(0))
    distance[13] = torch.nan
    decile = distance_decile(distance)
    assert decile[13] == 0
    counts = torch.bincount(decile)[1:]
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    order = distance[decile > 0].argsort()
    assert (decile[decile > 0][order].diff() >= 0).all()
    assert distance_decile(torch.full((20,), 0.5)).tolist() == [1 + row // 2 for row in range(20)]
    assert distance_decile(torch.zeros(0)).tolist() == []
