"""Adapters of the tiny model, with weights drawn at random."""

import pytest
import torch
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter
from peft import LoraConfig


@pytest.fixture
def make_adapter(tiny_model, tmp_path):
    """Writes an adapter whose B is drawn from a normal distribution of the given scale; returns its folder."""

    def make(name="adapter", seed=0, scale=0.02, **settings):
        base = BaseModel(str(tiny_model))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **settings}
            model = attach_adapter(base.load(), LoraConfig(**settings))
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=scale)
        export_adapter(model, tmp_path / name, base.source)
        return tmp_path / name

    return make
