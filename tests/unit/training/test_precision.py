"""Half precision: of the base weights, of the products, of both; the adapter stays float32."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule

from fixtures.training import ONLY_FACTS, fit


@pytest.mark.parametrize(
    ("dtype", "precision"), [("bfloat16", "32-true"), ("float32", "bf16-mixed"), ("bfloat16", "bf16-mixed")]
)
def test_training_in_bfloat16_keeps_a_float32_adapter(tiny_model, facts_file, dtype, precision):
    _, exact = fit(tiny_model, facts_file)
    of_base = {"dtype": dtype}
    module, steps = fit(tiny_model, facts_file, model=of_base, data=of_base, trainer={"precision": precision})
    trained = {parameter.dtype for parameter in module.model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in module.model.parameters() if not parameter.requires_grad}
    assert trained == {torch.float32}
    assert frozen == {getattr(torch, dtype)}
    np.testing.assert_allclose(steps.of("train/loss"), exact.of("train/loss"), rtol=0.05)
    assert steps.of("train/loss") != exact.of("train/loss")


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("bf16-true", "`32-true` with `dtype: bfloat16`"),
        ("16-true", "`32-true` with `dtype: bfloat16`"),
        ("64-true", "`trainer.precision` must be one of 32-true, 16-mixed, bf16-mixed, got 64-true"),
    ],
)
def test_an_adapter_in_another_precision_is_refused(tiny_model, facts_file, precision, said):
    with pytest.raises(InputError, match=said):
        fit(tiny_model, facts_file, trainer={"precision": precision})


def test_answers_of_the_base_model_are_compared_with_those_of_the_same_precision(tiny_model, facts_file):
    """An adapter that changes nothing must measure as nothing, whoever asked the base model before."""
    for precision in ("32-true", "bf16-mixed"):
        data = KnowledgeDataModule(facts=str(facts_file), base_model=str(tiny_model), evaluation=ONLY_FACTS)
        module = SemanticPeftModule(base_model=str(tiny_model))
        trainer = Trainer(
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.test(module, datamodule=data, verbose=False)
        assert [row.after.nll - row.before.nll for row in module.evaluation.comparisons] == [0.0] * 12, precision
