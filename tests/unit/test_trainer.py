"""What `score` checks before it measures anything."""

from types import SimpleNamespace

import lit_semantic_peft.trainer as trainer_module
import pytest
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import SemanticPeftModule

from fixtures.run_folder import write_run_folder


class BeginsToMeasure(Exception):
    pass


def test_a_run_and_the_data_may_name_their_base_model_differently(tmp_path, monkeypatch):
    """The run's summary has the name that anybody can load, the configuration the one that the user gave."""
    folder = write_run_folder(tmp_path / "run")
    public = {"smollm2-135m": folder.read_summary().base_model, "other": "Other/Model"}
    monkeypatch.setattr(trainer_module, "resolve_base_model", lambda name, _: SimpleNamespace(public_name=public[name]))

    def begin(self, stage):
        raise BeginsToMeasure

    monkeypatch.setattr(KnowledgeDataModule, "setup", begin)

    def score(base_model):
        trainer = trainer_module.KnowledgeTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.score(SemanticPeftModule(), KnowledgeDataModule(base_model=base_model), run=str(folder.path))

    with pytest.raises(BeginsToMeasure):
        score("smollm2-135m")
    with pytest.raises(InputError, match=r"trained on the base model \S+, but `base_model` is other"):
        score("other")
