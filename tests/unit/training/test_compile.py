"""Compiled layers: the same trajectory, watched or not, under the same names; and what is missing is said."""

import logging
import shutil

import pytest
import torch
from lit_semantic_peft.callbacks import InterferenceMonitor
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_matrix
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.models.compiled import compile_layers
from peft import LoraConfig
from torch._dynamo.utils import counters

from fixtures.models import tiny_llama
from fixtures.training import (
    ONLY_FACTS,
    assert_same_adapter,
    assert_same_trajectory,
    fit,
    fit_ramped,
    is_same_adapter,
)


@pytest.mark.long
def test_a_compiled_run_is_the_same_run(tiny_model, facts_file, tmp_path, caplog):
    """Watched by the monitor, whose hooks compiled code would not call; batches of several lengths."""
    caplog.set_level(logging.INFO, "lit_semantic_peft")
    trainer = {"default_root_dir": tmp_path}
    ordinary = fit_ramped(tiny_model, facts_file, trainer=trainer)
    counters.clear()
    monitor = InterferenceMonitor(num_facts=4, every_n_epochs=1)
    compiled = fit_ramped(tiny_model, facts_file, model={"compile": True}, trainer=trainer, callbacks=[monitor])
    assert 0 < counters["stats"]["unique_graphs"] <= 6  # one set for both layers and all lengths, not one for each
    assert_same_trajectory(ordinary, compiled)  # names of the adapter's tensors among them
    assert [record.epoch for record in monitor.records] == [0, 1, 2]
    caplog.clear()
    matrices = [
        gradient_matrix(run.module.model, run.data.training_batches(range(8), 4)) for run in (ordinary, compiled)
    ]
    torch.testing.assert_close(*matrices, rtol=1e-3, atol=1e-4 * float(matrices[0].diagonal().max()))
    assert "one backward per fact" not in caplog.text  # the hooks saw all of the gradient


@pytest.mark.long
def test_a_compiled_run_goes_on_from_a_checkpoint(tiny_model, facts_file, tmp_path):
    settings = {"model": {"compile": True}, "data": {"evaluation": ONLY_FACTS}}
    torch.compiler.reset()  # what another test has compiled would be used again
    counters.clear()
    whole = fit(tiny_model, facts_file, **settings).module
    assert counters["stats"]["unique_graphs"] > 0
    half = fit(tiny_model, facts_file, trainer={"max_epochs": 1}, **settings).module
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(tiny_model, facts_file, ckpt_path=str(tmp_path / "half.ckpt"), **settings).module
    assert not is_same_adapter(half, resumed)
    assert_same_adapter(whole, resumed)


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"C\+\+ compiler.*Install g\+\+"):
        compile_layers(attach_adapter(tiny_llama(60), LoraConfig(r=2, target_modules="all-linear")))
