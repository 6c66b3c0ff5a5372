"""What a module checks and says of its adapter: before facts are scored, and when training starts."""

import logging
from pathlib import Path

import pytest
import torch
from lit_semantic_peft.data.prepare import Preparation
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of
from peft import IA3Config, LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from fixtures.models import tiny_llama
from fixtures.training import ADAMW, build, fit

DOCS = Path(__file__).resolve().parents[3] / "docs" / "adapters.md"
IA3 = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])


@pytest.mark.parametrize("config", [LoraConfig(target_modules=["nope"]), LoraConfig(r=-1, target_modules=["q_proj"])])
def test_an_adapter_that_does_not_fit_is_refused_before_facts_are_scored(config, tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr(Preparation, "prepare", lambda *_: pytest.fail("the facts were scored"))
    parts = build(tiny_model, facts_file, model={"peft_config": config})
    with pytest.raises(InputError):
        parts.trainer.fit(parts.module, datamodule=parts.data)


def test_an_adapter_that_cannot_run_is_refused_before_facts_are_scored(tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr(Preparation, "prepare", lambda *_: pytest.fail("the facts were scored"))

    def fails(*_, **__):
        raise TypeError("a layer got what it does not expect")

    monkeypatch.setattr(type(tiny_llama()), "forward", fails)
    parts = build(tiny_model, facts_file)
    with pytest.raises(InputError, match=r"cannot run with LoraConfig .TypeError: a layer got what it does not expect"):
        parts.trainer.fit(parts.module, datamodule=parts.data)


def test_the_check_leaves_no_trace(tiny_model, facts_file):
    module = build(tiny_model, facts_file).module
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module.check_adapter()
    assert torch.equal(torch.get_rng_state(), before)
    assert module._model is None


@pytest.mark.parametrize(
    ("settings", "rate", "said"),
    [
        ({"peft_config": IA3, "optimizer": None}, 0.05, "Learning rate: 0.05"),
        ({"optimizer": None}, 2e-3, "Learning rate: 0.002"),
        ({"peft_config": IA3, "optimizer": ADAMW}, 1e-2, "0.01; AdamW's default for IA3Config is 0.05"),
    ],
)
def test_the_learning_rate_is_that_of_the_type_unless_it_is_given(settings, rate, said, tiny_model, facts_file, caplog):
    caplog.set_level(logging.INFO, logger="lit_semantic_peft")
    model = {"schedule": "cosine", "warmup_ratio": 0.1, **settings}
    run = fit(tiny_model, facts_file, model=model, trainer={"max_epochs": 1})
    assert said in caplog.text
    optimizer = run.trainer.optimizers[0]
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["initial_lr"] == rate
    if settings["optimizer"] is None:
        assert optimizer.param_groups[0]["weight_decay"] == 0


def test_the_page_has_the_rate_of_every_type():
    table = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].replace(".", "").isdigit():
            table |= {name.strip(): float(cells[1]) for name in cells[0].replace("`", "").split(",")}
    others = table.pop("all others")
    kinds = {}
    for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        config = object.__new__(config_class)  # no settings are needed to ask for the type
        config.peft_type = kind
        if "use" not in traits_of(config).cannot:
            kinds[peft_type_name(config)] = traits_of(config).learning_rate
    assert table.keys() <= kinds.keys()
    assert {name: table.get(name, others) for name in kinds} == kinds
