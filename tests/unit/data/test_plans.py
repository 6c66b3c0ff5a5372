"""The groups of settings, and what an old name of a setting says in Python."""

import pytest
from lit_semantic_peft.data import BatchPlan, KnowledgeDataModule, SelectionPlan
from lit_semantic_peft.data.moved import MOVED, moved_to
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_says_the_new_one(old):
    section, name = old.split(".")
    taker = {"data": KnowledgeDataModule, "model": SemanticPeftModule}[section]
    with pytest.raises(InputError) as refused:
        taker(**{name: None})
    group = MOVED[old].split(".")[1].partition(":")[0]
    assert f"`{old}` is now `{MOVED[old]}`" in str(refused.value)
    assert f"({group}=" in str(refused.value)


def test_only_old_names_have_moved():
    assert moved_to(["data.selection.weighting.init_args.gamma"]) is None
    assert moved_to(["data.weighting.init_args.gamma"]) == "`data.weighting` is now `data.selection.weighting`"
    assert moved_to(["data.facts"]) is None
    both = "`data.template` is now `data.encoding.template`, `model.dtype` is now `model.base_model.dtype`"
    assert moved_to(["data.template", "data.facts", "model.dtype", "data.template.x"]) == both


def test_a_name_that_never_was_is_pythons_own_error():
    with pytest.raises(TypeError, match="micro_batchsize"):
        KnowledgeDataModule(micro_batchsize=4)


@pytest.mark.parametrize("name", ["micro_batch_size", "bucket_steps", "eval_batch_size", "max_val_facts"])
def test_sizes_are_at_least_one(name):
    with pytest.raises(InputError, match=rf"`batches.{name}` must be at least 1, got 0"):
        BatchPlan(**{name: 0})


def test_facts_are_deferred_to_a_later_epoch():
    with pytest.raises(InputError, match=r"`selection.deferred_from_epoch` must be at least 1, got 0"):
        SelectionPlan(deferred_from_epoch=0)
