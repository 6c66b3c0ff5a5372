import math
import warnings

import numpy as np
import pytest
import torch
from lit_semantic_peft.interference import (
    GradientSketch,
    conflict_rate,
    gradient_matrix,
    gradient_sketch,
    harm_done,
    net_transfer,
    sketch_error,
    sketch_influence,
    worst_aggressor,
)
from peft import LoHaConfig
from tiny_models import batches_of, encoded_facts, tiny_llama, with_adapter


@pytest.fixture
def model():
    return with_adapter(tiny_llama())


def test_its_error_is_what_the_dimension_says_and_has_no_bias(model, tmp_path):
    batches = batches_of(encoded_facts(24), 7)
    exact = gradient_matrix(model, batches)
    errors = {}
    for dimension in (64, 1024):
        found = [
            sketch_error(gradient_sketch(model, batches, tmp_path / "s.npy", dimension, seed).gradient_dot(), exact)
            for seed in range(6)
        ]
        errors[dimension] = np.sqrt(np.mean([error["root_mean_square"] ** 2 for error in found]))
        assert errors[dimension] == pytest.approx(1 / math.sqrt(dimension), rel=0.35)
        assert abs(np.mean([error["bias"] for error in found])) < 2 / math.sqrt(dimension * 6)
    assert errors[1024] < errors[64] / 2.5


def test_seed_and_micro_batches(model, tmp_path):
    facts = encoded_facts(6)
    first = gradient_sketch(model, batches_of(facts, 6), tmp_path / "a.npy", 128, seed=3)
    again = gradient_sketch(model, batches_of(facts, 4), tmp_path / "b.npy", 128, seed=3)
    other = gradient_sketch(model, batches_of(facts, 6), tmp_path / "c.npy", 128, seed=4)
    np.testing.assert_allclose(first.features, again.features, rtol=1e-3, atol=1e-4 * np.abs(first.features).max())
    assert not np.allclose(first.features, other.features, rtol=0.1)
    assert isinstance(first.features, np.memmap)
    assert np.load(first.path).shape == (6, 128)


def test_the_generic_path_gives_the_same_kind_of_sketch(tmp_path):
    model = with_adapter(tiny_llama(), config=LoHaConfig(r=3, target_modules=["q_proj", "down_proj"]))
    batches = batches_of(encoded_facts(8), 3)
    estimate = gradient_sketch(model, batches, tmp_path / "s.npy", 4096).gradient_dot()
    assert sketch_error(estimate, gradient_matrix(model, batches))["root_mean_square"] < 0.05


@pytest.mark.parametrize("block", [2, 5, 100])
def test_influence_in_blocks_equals_influence_of_the_whole(block):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(13, 40, generator=generator)
    features[4] = 0
    features[6] = torch.nan
    features[8] = features[9]
    weight = torch.rand(13, generator=generator) * 2
    weight[2] = 0
    matrix = features @ features.T
    sketch = GradientSketch(features.numpy(), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sketch_influence(sketch, weight, num_trained_facts=50, threshold=0.1, block=block)
    rows, harm = worst_aggressor(matrix, weight)
    expected = {
        "net_transfer": net_transfer(matrix, weight, 50),
        "conflict_rate": conflict_rate(matrix, 0.1),
        "harm_done": harm_done(matrix, weight),
        "worst_aggressor": rows,
        "worst_aggressor_harm": harm,
    }
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, equal_nan=True, rtol=1e-4, atol=1e-5, msg=name)


def test_bad_arguments(model, tmp_path):
    for batches, dimension in ((batches_of(encoded_facts(2), 2), 0), ([], 8)):
        with pytest.raises(ValueError, match="`dimension`"):
            gradient_sketch(model, batches, tmp_path / "s.npy", dimension)


def test_an_error_without_pairs_is_nan():
    assert math.isnan(sketch_error(torch.zeros(2, 2), torch.zeros(2, 2))["root_mean_square"])
