import math

import pytest
import torch
from lit_semantic_peft.metrics import (
    Efficacy,
    Generalization,
    Locality,
    Portability,
    Robustness,
)
from lit_semantic_peft.metrics.fact_scores import FactScore

CLASSES = [Efficacy, Generalization, Locality, Robustness]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_part_is_the_mean_over_what_was_asked_of_a_fact(cls):
    metric = cls(num_facts=4)
    index = torch.tensor([0, 2, 2, 3])
    value = torch.tensor([1.0, 0.0, 1.0, math.nan])
    metric.update(index, **{metric.parts[-1]: value})
    result = metric.compute()
    assert list(result) == list(metric.parts)
    assert result[metric.parts[-1]].tolist()[:3] == pytest.approx([1.0, math.nan, 0.5], nan_ok=True)
    assert result[metric.parts[-1]][3].isnan(), "NaN is not measured, not wrong"
    assert result[metric.parts[0]].isnan().all()


def test_two_halves_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 5, (40,), generator=generator)
    right = torch.rand(40, generator=generator) > 0.5
    whole, left, other = (Generalization(5) for _ in range(3))
    whole.update(index, generalization=right)
    left.update(index[:13], generalization=right[:13])
    other.update(index[13:], generalization=right[13:])
    left.merge_state(other)
    assert torch.equal(left.compute()["generalization"], whole.compute()["generalization"])
    expected = [right[index == fact].double().mean().item() for fact in range(5)]
    assert whole.compute()["generalization"].tolist() == pytest.approx(expected)


def test_a_wrong_part_or_shape_is_named():
    with pytest.raises(ValueError, match="unknown part `guess`; Efficacy has efficacy, efficacy_teacher_forced"):
        Efficacy(2).update(torch.tensor([0]), guess=torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"`efficacy` and `fact_index` must have the same shape"):
        Efficacy(2).update(torch.tensor([0, 1]), efficacy=torch.tensor([1.0]))
    with pytest.raises(ValueError, match="`num_facts` must be at least 1, got 0"):
        Efficacy(0)


def test_what_follows_from_an_unlearned_fact_is_a_lucky_guess():
    metric = Portability(3)
    right = torch.tensor([True, False, True, True])
    learned = torch.tensor([True, True, False, False])
    metric.update(torch.tensor([0, 0, 1, 2]), right, ~right, learned, ~learned)
    result = {part: value.tolist() for part, value in metric.compute().items()}
    assert result["portability"] == [0.5, 0.0, 0.0]
    assert result["portability_of_learned"] == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)
    assert result["portability_teacher_forced"] == [0.0, 0.0, 0.0]
    assert result["portability_of_learned_teacher_forced"] == pytest.approx([math.nan, 0.0, 0.0], nan_ok=True)


def test_conclusions_may_be_given_on_an_accelerator(monkeypatch):
    """`meta` stands for one: like an accelerator's, its tensors do not mix with those of the processor."""
    received = {}
    monkeypatch.setattr(FactScore, "update", lambda self, fact_index, **values: received.update(values))
    index = torch.zeros(2, dtype=torch.long, device="meta")
    Portability(2).update(index, *[index.bool()] * 4)
    assert {part: value.device.type for part, value in received.items()} == dict.fromkeys(Portability.parts, "meta")
    of_learned = [received[f"portability_of_learned{form}"] for form in ("", "_teacher_forced")]
    assert [one.dtype for one in of_learned] == [torch.float64] * 2
