"""Half precision: of the base weights, of the products, of both; the adapter stays float32."""

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel

from fixtures.training import ONLY_FACTS, build, fit


@pytest.mark.parametrize(
    ("dtype", "precision"), [("bfloat16", "32-true"), ("float32", "bf16-mixed"), ("bfloat16", "bf16-mixed")]
)
def test_training_in_bfloat16_keeps_a_float32_adapter(tiny_model, facts_file, dtype, precision):
    exact = fit(tiny_model, facts_file)
    of_base = {"base_model": BaseModel(str(tiny_model), dtype=dtype)}
    run = fit(tiny_model, facts_file, model=of_base, data={"base_model": None}, trainer={"precision": precision})
    trained = {parameter.dtype for parameter in run.module.model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in run.module.model.parameters() if not parameter.requires_grad}
    assert trained == {torch.float32}
    assert frozen == {getattr(torch, dtype)}
    np.testing.assert_allclose(run.losses, exact.losses, rtol=0.05)
    assert run.losses != exact.losses


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("bf16-true", "`32-true` with `model.base_model.dtype: bfloat16`"),
        ("16-true", "`32-true` with `model.base_model.dtype: bfloat16`"),
        ("64-true", "`trainer.precision` must be one of 32-true, 16-mixed, bf16-mixed, got 64-true"),
    ],
)
def test_an_adapter_in_another_precision_is_refused(tiny_model, facts_file, precision, said):
    with pytest.raises(InputError, match=said):
        fit(tiny_model, facts_file, trainer={"precision": precision})


def test_answers_of_the_base_model_are_compared_with_those_of_the_same_precision(tiny_model, facts_file):
    """An adapter that changes nothing must measure as nothing, whoever asked the base model before."""
    for precision in ("32-true", "bf16-mixed"):
        run = build(tiny_model, facts_file, data={"evaluation": ONLY_FACTS}, trainer={"precision": precision})
        run.trainer.test(run.module, datamodule=run.data, verbose=False)
        assert [row.after.nll - row.before.nll for row in run.module.evaluation.comparisons] == [0.0] * 12, precision
