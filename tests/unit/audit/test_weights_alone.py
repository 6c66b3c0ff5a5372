"""Statistics of the updates against those of the whole matrices, and an adapter beside a bank."""

import json
import math

import numpy as np
import pytest
import torch
from lit_semantic_peft.adapters.flora import FLoRAConfig
from lit_semantic_peft.audit.bank import UNUSUAL, compare_with_bank, read_bank
from lit_semantic_peft.audit.weights import measure_weights
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter
from lit_semantic_peft.models.saved_adapter import read_adapter
from peft import IA3Config
from scipy.stats import kurtosis


def oracle(a, b, scaling):
    """From ΔW itself."""
    delta = scaling * (b.double() @ a.double())
    sigma = torch.linalg.svdvals(delta)
    share = sigma[: a.shape[0]] / sigma[: a.shape[0]].sum()
    return {
        "norm": float(delta.norm()),
        "spectral_norm": float(sigma[0]),
        "effective_rank": math.exp(-float((share * share.log()).sum())),
        "first_energy": float(sigma[0] ** 2 / sigma.square().sum()),
        "kurtosis": float(kurtosis(delta.flatten().numpy())),
    }


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"lora_alpha": 8}, lambda name: 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, lambda name: 4.0),
        (
            {"lora_alpha": 8, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 4}},
            lambda name: 4.0 if "down" in name else 1.0 if "layers.1" in name else 2.0,
        ),
    ],
    ids=["lora", "rslora", "patterns"],
)
def test_statistics_are_those_of_the_whole_update(make_adapter, settings, scaling):
    saved = read_adapter(make_adapter(**settings))
    found = measure_weights(saved)
    assert len(found.layers) == 4
    assert found.other_tensors == ()
    for layer in found.layers:
        a, b = (saved.tensors[f"base_model.model.{layer.name}.lora_{side}.weight"] for side in "AB")
        for name, expected in oracle(a, b, scaling(layer.name)).items():
            assert getattr(layer, name) == pytest.approx(expected, rel=1e-4), (layer.name, name)
    assert {(layer.block, layer.module) for layer in found.layers} == {
        (block, module) for block in (0, 1) for module in ("q_proj", "down_proj")
    }


def test_an_embedding_and_a_flora_have_the_update_that_they_make(make_adapter, tiny_model, tmp_path):
    saved = read_adapter(make_adapter(target_modules=["embed_tokens"]))
    (layer,) = measure_weights(saved).layers
    a, b = (next(value for name, value in saved.tensors.items() if f"embedding_{side}" in name) for side in "AB")
    assert layer.norm == pytest.approx(float((b @ a).norm()) * 8 / 4, rel=1e-4)
    base = BaseModel(str(tiny_model))
    model = attach_adapter(base.load(), FLoRAConfig(r=3, lora_alpha=3, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "core" in name:
            torch.nn.init.eye_(parameter)
    expected = [
        float(module.get_delta_weight("default").norm())
        for name, module in model.named_modules()
        if name.endswith("q_proj")
    ]
    export_adapter(model, tmp_path / "flora", base.source)
    found = measure_weights(read_adapter(tmp_path / "flora"))
    assert [layer.norm for layer in found.layers] == pytest.approx(expected, rel=1e-4)


def test_what_is_no_pair_of_factors_is_named_not_measured(tiny_model, tmp_path):
    base = BaseModel(str(tiny_model))
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    export_adapter(attach_adapter(base.load(), config), tmp_path / "ia3", base.source)
    found = measure_weights(read_adapter(tmp_path / "ia3"))
    assert (found.layers, found.signature, found.share_touched) == ((), {}, None)
    assert len(found.other_tensors) == 2


def test_an_untrained_adapter_touches_nothing(make_adapter):
    found = measure_weights(read_adapter(make_adapter(scale=0.0)))
    assert found.share_touched == 0
    assert found.signature == {}
    assert {(layer.norm, layer.effective_rank, layer.first_energy) for layer in found.layers} == {(0.0, 0.0, 0.0)}


def test_a_bank_knows_its_own_kind_and_measures_its_false_alarms(make_adapter, tmp_path):
    for seed in range(6):
        make_adapter(f"bank/{seed}", seed=seed)
    alike = measure_weights(read_adapter(make_adapter("alike", seed=9))).signature
    other = measure_weights(read_adapter(make_adapter("other", seed=9, scale=2.0))).signature
    usual, unusual = (compare_with_bank(one, tmp_path / "bank") for one in (alike, other))
    assert usual.largest < UNUSUAL * 2 < unusual.largest
    assert unusual.share_as_unusual == 0
    assert usual.left_out == unusual.left_out
    alarms = np.mean([z > UNUSUAL for z in usual.left_out.values()])
    assert usual.false_alarms == alarms
    assert usual.low <= alarms <= usual.high
    assert usual.high > 0.3  # six adapters cannot show a small rate


def test_an_adapter_is_not_compared_with_itself(make_adapter, tmp_path):
    for seed in range(5):
        make_adapter(f"bank/{seed}", seed=seed)
    own = tmp_path / "bank" / "3"
    assert set(read_bank(tmp_path / "bank", own)) == {"0", "1", "2", "4"}
    with pytest.raises(InputError, match=r"4 adapters .* expected at least 5"):
        compare_with_bank(measure_weights(read_adapter(own)).signature, tmp_path / "bank", own)


def test_pickles_are_refused_where_safetensors_alone_are_read(make_adapter):
    folder = make_adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle can run code"):
        read_adapter(folder, safetensors_only=True)


def test_findings_are_plain_data(make_adapter):
    found = measure_weights(read_adapter(make_adapter())).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["layers"][0]["rank"] == 4
