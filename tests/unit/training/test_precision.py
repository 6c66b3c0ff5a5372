"""Half precision: of the base weights, of the products, of both; the adapter stays float32."""

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError

from fixtures.training import fit


@pytest.mark.parametrize(
    ("dtype", "precision"), [("bfloat16", "32-true"), ("float32", "bf16-mixed"), ("bfloat16", "bf16-mixed")]
)
def test_training_in_bfloat16_keeps_a_float32_adapter(tiny_model, facts_file, dtype, precision):
    _, exact = fit(tiny_model, facts_file)
    module, steps = fit(tiny_model, facts_file, model={"dtype": dtype}, trainer={"precision": precision})
    trained = {parameter.dtype for parameter in module.model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in module.model.parameters() if not parameter.requires_grad}
    assert trained == {torch.float32}
    assert frozen == {getattr(torch, dtype)}
    np.testing.assert_allclose(steps.of("train/loss"), exact.of("train/loss"), rtol=0.05)
    assert steps.of("train/loss") != exact.of("train/loss")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_an_adapter_in_half_precision_is_refused(tiny_model, facts_file, precision):
    with pytest.raises(InputError, match="`32-true` with `dtype: bfloat16`"):
        fit(tiny_model, facts_file, trainer={"precision": precision})
