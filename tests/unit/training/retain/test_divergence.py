"""The divergence from a teacher of which the most likely tokens are kept."""

import pytest
import torch
from lit_semantic_peft.training.retain.divergence import TopTokens, divergence_from, top_tokens, without_tokens

TEACHER = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
STUDENT = TEACHER + torch.randn(5, 40, generator=torch.Generator().manual_seed(1))


def slow(teacher, student, k):
    """Of k + 1 outcomes, written out in float64."""
    rows = []
    for p, q in zip(teacher.double().softmax(-1), student.double().softmax(-1), strict=True):
        top = p.argsort(descending=True)[:k].tolist()
        rest = [token for token in range(len(p)) if token not in top]
        outcomes = [(p[token], q[token]) for token in top] + [(p[rest].sum(), q[rest].sum())]
        rows.append(sum(a * (a / b).log() for a, b in outcomes))
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 7, 39])
def test_divergence_is_that_of_the_top_tokens_and_the_rest(k):
    found = divergence_from(top_tokens(TEACHER, k), STUDENT)
    torch.testing.assert_close(found.double(), slow(TEACHER, STUDENT, k), rtol=1e-4, atol=1e-6)


def test_more_tokens_come_nearer_to_the_whole_divergence():
    whole = slow(TEACHER, STUDENT, 39)
    gaps = [(whole - divergence_from(top_tokens(TEACHER, k), STUDENT)).mean().item() for k in (1, 5, 20, None)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.01
    assert gaps[-1] == pytest.approx(0, abs=1e-6)
    assert top_tokens(TEACHER, 999).ids.shape == top_tokens(TEACHER, None).ids.shape == (5, 39)


@pytest.mark.parametrize("k", [6, 39])
def test_gradient_is_that_of_the_definition(k):
    teacher, student = (
        TEACHER.repeat(8, 1),
        STUDENT.repeat(8, 1).roll(1, dims=1),
    )  # in several parts, the last not whole
    counts = torch.linspace(-1, 2, len(student))
    fast, exact = (student.clone().requires_grad_() for _ in range(2))
    (divergence_from(top_tokens(teacher, k), fast) * counts).sum().backward()
    (slow(teacher, exact, k) * counts).sum().backward()
    torch.testing.assert_close(fast.grad, exact.grad, rtol=1e-4, atol=1e-6)


def test_gradient_where_a_token_is_dropped():
    targets = TEACHER.argmax(-1)
    teacher = top_tokens(without_tokens(TEACHER, targets), 3)
    fast, exact = (STUDENT.clone().requires_grad_() for _ in range(2))
    divergence_from(teacher, without_tokens(fast, targets)).sum().backward()
    kept = torch.stack([torch.arange(40)[torch.arange(40) != target] for target in targets])
    slow(TEACHER.gather(1, kept), exact.gather(1, kept), 3).sum().backward()
    torch.testing.assert_close(fast.grad, exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [3, None])
def test_a_dropped_token_counts_in_neither_distribution(k):
    targets = TEACHER.argmax(-1)
    teacher = top_tokens(without_tokens(TEACHER, targets), k)
    found = divergence_from(teacher, without_tokens(STUDENT, targets))
    louder = STUDENT.scatter(1, targets[:, None], 50.0)  # however likely the student finds the token
    torch.testing.assert_close(found, divergence_from(teacher, without_tokens(louder, targets)))
    kept = [[token for token in range(40) if token != target] for target in targets.tolist()]
    teacher_kept, student_kept = (torch.stack([x[i, kept[i]] for i in range(5)]) for x in (TEACHER, STUDENT))
    expected = slow(teacher_kept, student_kept, 3 if k else 38)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_second_derivative_is_refused():
    student = STUDENT.clone().requires_grad_()
    (first,) = torch.autograd.grad(divergence_from(top_tokens(TEACHER, 6), student).sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.square().sum().backward()


def test_a_certain_teacher_gives_a_finite_divergence_and_gradient():
    certain = torch.zeros(2, 40).index_fill(1, torch.tensor([3]), 300.0)
    student = torch.randn(2, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = divergence_from(top_tokens(certain, 4), student).sum()
    loss.backward()
    assert loss.item() == pytest.approx(-student.log_softmax(-1)[:, 3].sum().item(), rel=1e-5)
    assert student.grad.isfinite().all()


def test_parts_are_put_together_again():
    whole = top_tokens(TEACHER, 4)
    again = TopTokens.cat([whole[:2], whole[2:]])
    for name in TopTokens.__slots__:
        assert torch.equal(getattr(again, name), getattr(whole, name))
