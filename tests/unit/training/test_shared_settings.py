"""One configuration or plan in two modules or data modules: neither changes what the other, or the user, has."""

import shutil

import torch
from lit_semantic_peft.data import KnowledgeDataModule, SelectionPlan
from lit_semantic_peft.semantics import Online, Remoteness, Surprisal
from peft import LoraConfig

from fixtures.training import build_module


def test_two_modules_on_two_base_models_share_a_configuration(tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = LoraConfig(r=2, target_modules="all-linear")
    given = config.to_dict()
    modules = [build_module(base, peft_config=config) for base in (tiny_model, other)]
    for module in modules:
        module.configure_model()
    assert [one.model.active_peft_config.base_model_name_or_path for one in modules] == [str(tiny_model), str(other)]
    assert config.to_dict() == given


def test_two_data_modules_share_a_plan(tiny_model, facts_file):
    plan = SelectionPlan(distance=Surprisal(), weighting=Online(Remoteness()))
    whole, part = (
        KnowledgeDataModule(str(facts_file), num_facts=number, selection=plan, base_model=str(tiny_model))
        for number in (None, 3)
    )
    whole.setup()
    expected = whole.weighting.reference.clone()
    part.setup()
    assert len(part.weighting.reference) == 3
    assert torch.equal(whole.weighting.reference, expected)
    assert plan.weighting.reference is None
