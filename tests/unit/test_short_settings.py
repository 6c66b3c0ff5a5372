"""The flat names by which a dashboard compares runs."""

import torch
from lit_semantic_peft.cli.short_settings import short_settings
from peft import LoraConfig


def test_what_scales_and_gates_the_adapter_has_a_name_and_what_is_open_has_none():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    gate = {"class_path": "lit_semantic_peft.adapters.SubjectGate", "init_args": {"match": "subjects", "aliases": {}}}
    config = {"recipe": "gated", "extrapolate": 1.3, "refine": None, "model": {"gate": gate, "retain": []}}
    found = short_settings(config, optimizer, LoraConfig(r=4))
    chosen = {"optimizer": "AdamW", "lr": 2e-3, "peft": "LoraConfig", "r": 4, "lora_alpha": 8}
    assert found == chosen | {"recipe": "gated", "extrapolate": 1.3, "gate": "subjects"}
