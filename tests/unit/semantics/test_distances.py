import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics.distances import (
    ExpectedEmbeddingDistance,
    HiddenStateDistance,
    ResponseDistance,
    Surprisal,
    TargetPass,
)

VOCABULARY, HIDDEN = 23, 5
NUM_TARGETS = [3, 1, 4, 2]


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    count = sum(NUM_TARGETS)
    return TargetPass(
        logits=3 * normal(count, VOCABULARY),
        hidden=normal(count, HIDDEN),
        targets=torch.randint(VOCABULARY, (count,), generator=generator),
        row=torch.repeat_interleave(torch.arange(4), torch.tensor(NUM_TARGETS)),
        num_facts=4,
        input_embeddings=normal(VOCABULARY, HIDDEN) + 1.5,  # a common direction, as real embeddings have
        output_embeddings=normal(VOCABULARY, HIDDEN) + 0.5,
        answers=[[1, 2, 3], [], [4], [5, 5]],
    )


def cosine_distance(left, right):
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    norms = [sum(a * a for a in side) ** 0.5 for side in (left, right)]
    return 1.0 - dot / (norms[0] * norms[1])


def table(embeddings, centered):
    rows = embeddings.double().tolist()
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [[value - m * centered for value, m in zip(row, mean, strict=True)] for row in rows]


def mean_row(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def by_fact(values):
    values, out = list(values), []
    for count in NUM_TARGETS:
        out.append(values[:count])
        values = values[count:]
    return out


POOLS = {"mean": lambda one: sum(one) / len(one), "first": lambda one: one[0], "last": lambda one: one[-1]}


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("pooling", POOLS)
def test_expected_embedding_distance_by_loops(outputs, pooling, centered):
    rows = table(outputs.input_embeddings, centered)
    tokens = []
    for logits, target in zip(outputs.logits.double(), outputs.targets.tolist(), strict=True):
        p = (logits.exp() / logits.exp().sum()).tolist()
        expected = [sum(p[v] * rows[v][h] for v in range(VOCABULARY)) for h in range(HIDDEN)]
        tokens.append(cosine_distance(expected, rows[target]))
    slow = torch.tensor([POOLS[pooling](one) for one in by_fact(tokens)])
    fast = ExpectedEmbeddingDistance(pooling, centered).measure(outputs)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("pooling", POOLS)
def test_hidden_state_distance_by_loops(outputs, pooling, centered):
    rows = table(outputs.output_embeddings, centered)
    tokens = [
        cosine_distance(hidden, rows[target])
        for hidden, target in zip(outputs.hidden.double().tolist(), outputs.targets.tolist(), strict=True)
    ]
    slow = torch.tensor([POOLS[pooling](one) for one in by_fact(tokens)])
    fast = HiddenStateDistance(pooling, centered).measure(outputs)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("centered", [False, True])
def test_response_distance_by_loops(outputs, centered):
    rows = table(outputs.input_embeddings, centered)
    slow = [
        cosine_distance(mean_row([rows[v] for v in answer]), mean_row([rows[v] for v in target])) if answer else 1.0
        for answer, target in zip(outputs.answers, by_fact(outputs.targets.tolist()), strict=True)
    ]
    fast = ResponseDistance(centered).measure(outputs)
    torch.testing.assert_close(fast, torch.tensor(slow), atol=2e-6, rtol=1e-6)
    assert fast[1] == 1.0, "an empty answer has no direction"


def test_surprisal_is_the_mean_cross_entropy(outputs):
    log_p = outputs.logits.double().log_softmax(dim=-1).tolist()
    tokens = [-row[target] for row, target in zip(log_p, outputs.targets.tolist(), strict=True)]
    slow = torch.tensor([sum(one) / len(one) for one in by_fact(tokens)])
    torch.testing.assert_close(Surprisal().measure(outputs), slow, atol=1e-5, rtol=1e-6)
    assert Surprisal().is_rank_based
    assert not ExpectedEmbeddingDistance().is_rank_based


@pytest.mark.parametrize(
    "distance",
    [ExpectedEmbeddingDistance(), ExpectedEmbeddingDistance(centered=True), HiddenStateDistance(), ResponseDistance()],
    ids=lambda one: one.name,
)
def test_range_at_the_extremes(outputs, distance):
    """A model that is sure of the target is at 0; one that says the opposite is at 2."""
    embeddings = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1))
    embeddings[1::2] = -embeddings[0:-1:2]  # tokens 2k and 2k + 1 point in opposite directions
    embeddings[-1] = 0.0  # the mean is 0 as well
    targets = outputs.targets % 11 * 2  # even ones: opposite tokens within a target would cancel out

    def sure_of(tokens):
        return TargetPass(
            logits=1000.0 * torch.nn.functional.one_hot(tokens, VOCABULARY).float(),
            hidden=7.0 * embeddings[tokens],
            targets=targets,
            row=outputs.row,
            num_facts=4,
            input_embeddings=embeddings,
            output_embeddings=embeddings,
            answers=by_fact(tokens.tolist()),
        )

    near, far = distance.measure(sure_of(targets)), distance.measure(sure_of(targets ^ 1))
    torch.testing.assert_close(near, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(far, torch.full((4,), 2.0), atol=1e-5, rtol=0)
    assert near.min() >= 0.0
    assert far.max() <= 2.0


def test_a_zero_row_is_at_distance_one(outputs):
    silent = TargetPass(
        outputs.logits, torch.zeros_like(outputs.hidden), outputs.targets, outputs.row, 4,
        outputs.input_embeddings, outputs.output_embeddings,
    )  # fmt: skip
    assert HiddenStateDistance().measure(silent).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "distance", [ExpectedEmbeddingDistance(), HiddenStateDistance(), ResponseDistance(), Surprisal()]
)
def test_half_precision_is_measured_in_single(outputs, distance):
    half = TargetPass(
        outputs.logits.bfloat16(), outputs.hidden.bfloat16(), outputs.targets, outputs.row, 4,
        outputs.input_embeddings.bfloat16(), outputs.output_embeddings.bfloat16(), outputs.answers,
    )  # fmt: skip
    measured = distance.measure(half)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, distance.measure(outputs), atol=0.03, rtol=0.02)


def test_bad_settings_and_missing_answers_are_refused(outputs):
    with pytest.raises(InputError, match=r"`pooling` must be one of mean, first, last, got 'median'"):
        ExpectedEmbeddingDistance(pooling="median")
    without = TargetPass(
        outputs.logits, outputs.hidden, outputs.targets, outputs.row, 4,
        outputs.input_embeddings, outputs.output_embeddings,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs `answers`"):
        ResponseDistance().measure(without)
