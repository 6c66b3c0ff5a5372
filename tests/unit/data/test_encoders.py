"""The encoder of a base model knows what an adapter leaves of the model's positions."""

from types import SimpleNamespace

import pytest
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import GPT2Config, GPT2LMHeadModel

from fixtures.models import byte_level_bpe
from fixtures.releases import answers_with_virtual_tokens
from fixtures.training import build

POSITIONS = 64


@pytest.fixture(scope="module")
def learned_positions(tmp_path_factory):
    """A folder of a model that has a table of positions, and none behind its last."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "gpt2", byte_level_bpe()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (None, POSITIONS),
        (LoraConfig(target_modules=["c_attn"]), POSITIONS),
        (PrefixTuningConfig(num_virtual_tokens=3), POSITIONS - 3),
        (PromptTuningConfig(num_virtual_tokens=5), POSITIONS - 5),
    ],
)
def test_virtual_tokens_take_positions(config, left, learned_positions):
    module = None if config is None else SimpleNamespace(peft_config=config, adapter=None)
    assert encoder_of(BaseModel(str(learned_positions)), EncodingPlan(), module).num_positions == left


def test_so_do_those_of_an_exported_adapter(learned_positions, tmp_path):
    base = BaseModel(str(learned_positions))
    model = attach_adapter(base.load(), PrefixTuningConfig(num_virtual_tokens=4))
    export_adapter(model, tmp_path / "adapter", base.source)
    module = SimpleNamespace(peft_config=LoraConfig(), adapter=str(tmp_path / "adapter"))
    assert encoder_of(base, EncodingPlan(), module).num_positions == POSITIONS - 4


@answers_with_virtual_tokens
def test_a_training_with_virtual_tokens_ends_with_all_questions_asked(learned_positions, facts_file):
    """Unrelated text is as long as the model takes: with virtual tokens before it, it was longer."""
    adapter = {"peft_config": PrefixTuningConfig(num_virtual_tokens=3)}
    parts = build(learned_positions, facts_file, model=adapter, trainer={"max_epochs": 1})
    parts.trainer.fit(parts.module, datamodule=parts.data)
    parts.trainer.test(parts.module, datamodule=parts.data, verbose=False)
    assert parts.module.evaluation is not None
