"""When models are checked, and what is remembered of it."""

from contextlib import nullcontext

import pytest
import torch
from lit_semantic_peft import score
from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.data import self_checks
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.data.self_checks import SelfChecks, require_awake
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel, attach_adapter
from lit_semantic_peft.models.fast_ways import FastWays, fast_ways
from lit_semantic_peft.tokens import EncodedFact
from peft import LoraConfig, TrainableTokensConfig

from fixtures.models import tiny_llama
from fixtures.training import build, fit

NO_PADDING = FastWays(batched_answers=False)


@pytest.fixture
def asked(monkeypatch):
    """What was checked, as (has an adapter that is on, trains); the verdict is that padding is wrong."""
    calls = []

    def verdict(model, rows, pad_id, *, trains=False):
        calls.append((not getattr(model, "_adapters_disabled", True), trains))
        return NO_PADDING

    monkeypatch.setattr(self_checks, "self_check", verdict)
    return calls


@pytest.fixture
def checks(tiny_model, tmp_path):
    base = BaseModel(str(tiny_model))
    return SelfChecks(base, encoder_of(base, EncodingPlan()), ContentCache(tmp_path / "verdicts"))


def test_a_base_model_is_asked_once_and_said_each_time(checks, asked, caplog):
    for _ in range(2):
        model = checks.base.load()
        checks.check(model)
        assert fast_ways(model) == NO_PADDING
    assert asked == [(False, False)]
    said = [record.message for record in caplog.records if "Self-check of" in record.message]
    assert len(said) == 2
    assert "batches of prompts of equal length" in said[0]


def test_a_verdict_is_of_a_configuration_of_the_adapter(checks, asked):
    for r, is_same in ((4, False), (4, True), (8, False)):
        done = len(asked)
        model = attach_adapter(checks.base.load(), LoraConfig(r=r, target_modules="all-linear"))
        checks.check_on_all_ranks(model, trains=True)
        assert fast_ways(model) == NO_PADDING
        with model.disable_adapter():
            assert fast_ways(model) == NO_PADDING
        assert (len(asked) == done) == is_same
    assert asked == [(False, False), (True, True), (True, True)]


def test_a_damaged_verdict_is_measured_anew(checks, asked):
    checks.check(checks.base.load())
    (kept,) = checks.cache.folder.glob("*.npy")
    for damage in (b"", b"no array"):
        kept.write_bytes(damage)
        checks.check(checks.base.load())
    assert len(asked) == 3


def test_what_is_wrong_on_one_rank_is_wrong_on_all(checks, asked, monkeypatch):
    other = FastWays(cache=False)
    monkeypatch.setattr(self_checks, "from_all_ranks", lambda mine: [mine, other])
    model = attach_adapter(checks.base.load(), LoraConfig(target_modules="all-linear"))
    checks.check_on_all_ranks(model, trains=True)
    assert fast_ways(model) == FastWays(batched_answers=False, cache=False)


def test_score_asks_unless_it_is_told_not_to(tiny_model, facts_file, asked):
    score(str(facts_file), str(tiny_model), self_check=False)
    assert asked == []
    score(str(facts_file), str(tiny_model))
    score(str(facts_file), str(tiny_model))
    assert asked == [(False, False)]


def test_a_training_asks_before_it_scores_and_before_it_trains(tiny_model, facts_file, asked, caplog):
    run = fit(tiny_model, facts_file)
    assert asked == [(False, False), (True, True)]
    assert fast_ways(run.module.model) == NO_PADDING
    assert sum("with its adapter" in record.message for record in caplog.records) == 1


def test_a_training_that_is_told_not_to_asks_nothing(tiny_model, facts_file, asked):
    fit(tiny_model, facts_file, data={"self_check": False})
    assert asked == []


def test_a_test_and_a_prediction_ask_where_no_training_has(tiny_model, facts_file, asked):
    parts = build(tiny_model, facts_file)
    parts.trainer.predict(parts.module, datamodule=parts.data)
    parts.trainer.validate(parts.module, datamodule=parts.data, verbose=False)
    assert asked == [(False, False), (True, False)]


def test_a_refused_model_is_not_trained(tiny_model, facts_file, monkeypatch):
    def refuse(model, rows, pad_id, *, trains=False):
        if trains:
            raise InputError("no way is right")
        return FastWays()

    monkeypatch.setattr(self_checks, "self_check", refuse)
    parts = build(tiny_model, facts_file)
    with pytest.raises(InputError, match="no way is right"):
        parts.trainer.fit(parts.module, datamodule=parts.data)
    assert parts.trainer.global_step == 0


@pytest.mark.parametrize(("text", "is_there"), [(" is", True), ("東", False)])
def test_an_adapter_that_begins_at_tokens_of_no_fact_is_refused(tiny_model, facts_file, text, is_there):
    tokens = BaseModel(str(tiny_model)).load_tokenizer()(text)["input_ids"]
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=tokens, task_type="CAUSAL_LM")
    if is_there:
        run = fit(tiny_model, facts_file, model={"peft_config": config})
        assert any(value.any() for name, value in run.adapter.items() if "lora_B" in name)
    else:
        with pytest.raises(InputError, match="which no prompt of the facts has"):
            fit(tiny_model, facts_file, model={"peft_config": config})


@pytest.mark.parametrize(
    ("tokens", "is_there"), [((5,), True), ((30,), True), ((31,), False), ((9, 31), True), ((40,), False)]
)
def test_trained_tokens_that_no_fact_has_are_refused(tokens, is_there):
    """The last token of a fact is no input."""
    texts = [EncodedFact((5, 6), (30, 31)), EncodedFact((7,), (9,), (2,))]
    config = TrainableTokensConfig(token_indices=[*tokens], target_modules=["embed_tokens"])
    model = attach_adapter(tiny_llama(tied=False), config)
    with nullcontext() if is_there else pytest.raises(InputError, match=f"embeddings of {len(tokens)} tokens"):
        require_awake(model, texts)


def test_trained_tokens_are_no_obstacle_where_more_is_trained():
    texts = [EncodedFact((5, 6), (30, 31))]
    beside = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[40])
    require_awake(attach_adapter(tiny_llama(tied=False), beside), texts)
    tied = TrainableTokensConfig(token_indices=[40], target_modules=["embed_tokens"])
    require_awake(attach_adapter(tiny_llama(tied=True), tied), texts)


def test_the_check_changes_no_training(tiny_model, facts_file):
    checked, unchecked = (
        fit(tiny_model, facts_file, data={"self_check": self_check}, model={"peft_config": dropping()})
        for self_check in (True, False)
    )
    assert checked.losses == unchecked.losses
    assert all(torch.equal(value, unchecked.adapter[name]) for name, value in checked.adapter.items())


def dropping():
    return LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3)
