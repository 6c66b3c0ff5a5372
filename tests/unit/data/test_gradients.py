"""`interference_matrix`: the gradient matrix of any PEFT model, without trainer and data module."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lit_semantic_peft import interference_matrix, read_facts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_matrix
from peft import LoraConfig, get_peft_model

from fixtures.models import byte_level_bpe, tiny_llama
from fixtures.training import build, build_module


@pytest.fixture
def tokenizer():
    return byte_level_bpe()


@pytest.fixture
def model(tokenizer):
    return get_peft_model(
        tiny_llama(vocab_size=len(tokenizer)), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )


def test_it_is_the_matrix_that_a_run_measures(tiny_model, facts_file, tokenizer):
    parts = build(tiny_model, facts_file)
    parts.trainer.fit(parts.module, datamodule=parts.data)
    rows = range(len(parts.data.prepared.facts))
    expected = gradient_matrix(parts.module.model, parts.data.training_batches(rows, 16)).numpy()
    found = interference_matrix(parts.module.model, str(facts_file), tokenizer)
    np.testing.assert_allclose(found.gradient_dot, expected, rtol=1e-5, atol=1e-7)
    assert found.fact_id == tuple(fact.id for fact in parts.data.prepared.facts)


def test_it_takes_facts_and_does_not_depend_on_the_batches(model, facts_file, tokenizer):
    facts = read_facts(str(facts_file)).facts
    whole = interference_matrix(model, facts, tokenizer)
    parts = interference_matrix(model, facts, tokenizer, batch_size=5)
    np.testing.assert_allclose(parts.gradient_dot, whole.gradient_dot, rtol=1e-4, atol=1e-6)
    assert np.diagonal(whole.gradient_cosine()) == pytest.approx(1.0)
    table = whole.to_pandas()
    assert list(table.columns) == list(table.index) == [fact.id for fact in facts]


def test_a_model_that_trains_nothing_is_refused(model, facts_file, tokenizer):
    model.requires_grad_(False)
    with pytest.raises(InputError, match="is_trainable=True"):
        interference_matrix(model, str(facts_file), tokenizer)


def test_a_part_of_given_facts_is_that_of_a_file(model, facts_file, tokenizer):
    parts = [
        interference_matrix(model, facts, tokenizer, num_facts=2).fact_id
        for facts in (str(facts_file), read_facts(str(facts_file)).facts)
    ]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 2


def test_facts_are_given_as_to_score(model, facts_file, tokenizer):
    facts = read_facts(str(facts_file))
    expected = interference_matrix(model, facts.facts, tokenizer)
    for given in (facts, Path(facts_file)):
        found = interference_matrix(model, given, tokenizer)
        assert found.fact_id == expected.fact_id
        np.testing.assert_array_equal(found.gradient_dot, expected.gradient_dot)
    with pytest.raises(InputError, match="`facts` is empty"):
        interference_matrix(model, [], tokenizer)
    with pytest.raises(InputError, match=f"that no other fact has, got '{facts.facts[0].id}'"):
        interference_matrix(model, [facts.facts[0], replace(facts.facts[1], id=facts.facts[0].id)], tokenizer)
    with pytest.raises(InputError, match=r"`dataset_split` is .* but `facts` has no splits"):
        interference_matrix(model, facts, tokenizer, dataset_split="test")
    with pytest.raises(InputError, match="`encoding`: expected an `EncodingPlan`"):
        interference_matrix(model, facts, tokenizer, encoding={"template": "chat"})


def test_of_a_lightning_module_its_model_is_taken(tiny_model, facts_file, tokenizer):
    module = build_module(tiny_model)
    with pytest.raises(
        InputError, match=r"`model`: expected a loaded model of peft, got SemanticPeftModule; give its `\.model`$"
    ):
        interference_matrix(module, str(facts_file), tokenizer)
