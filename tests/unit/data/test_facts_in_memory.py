"""Facts in memory are scored, trained, resumed and reported as those of a file."""

import json

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_semantic_peft.callbacks import FactReport
from lit_semantic_peft.data import FormsPlan, KnowledgeDataModule, prepare, score
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, read_facts
from lit_semantic_peft.facts.forms import Templates
from lit_semantic_peft.reports import RunFolder

from fixtures.training import ONLY_FACTS, assert_same_trajectory, build_module, build_trainer, fit


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def data_frame(path):
    return pytest.importorskip("pandas").DataFrame(records(path))


def data_set(path):
    return pytest.importorskip("datasets").Dataset.from_list(records(path))


@pytest.mark.parametrize(
    "form", [lambda path: path, read_facts, lambda path: list(read_facts(path).facts), records, data_frame, data_set]
)
def test_a_data_module_takes_what_score_takes(tiny_model, facts_file, form):
    parts = [
        KnowledgeDataModule(facts, base_model=str(tiny_model), evaluation=ONLY_FACTS)
        for facts in (str(facts_file), form(facts_file))
    ]
    for data in parts:
        data.setup()
    assert parts[0].prepared.facts == parts[1].prepared.facts
    assert parts[0].prepared.key == parts[1].prepared.key


def test_a_training_on_facts_in_memory_is_resumed_and_reported(tiny_model, facts_file, tmp_path):
    def run(facts, epochs, ckpt_path=None):
        callbacks = [ModelCheckpoint(tmp_path / f"kept-{epochs}", save_last=True), FactReport(show_summary=False)]
        trainer = {"max_epochs": epochs, "enable_checkpointing": True, "default_root_dir": str(tmp_path / f"{epochs}")}
        data = {"facts": facts, "evaluation": ONLY_FACTS}
        return fit(tiny_model, None, data=data, trainer=trainer, callbacks=callbacks, ckpt_path=ckpt_path)

    whole = run(str(facts_file), 3)
    assert_same_trajectory(run(records(facts_file), 3), whole)
    run(list(read_facts(facts_file).facts), 1)
    resumed = run(records(facts_file), 2, tmp_path / "kept-1" / "last.ckpt")
    assert resumed.losses == pytest.approx(whole.losses[3:6])
    assert RunFolder(tmp_path / "2").facts.num_rows == 12
    others = [{**record, "target": "Oslo"} for record in records(facts_file)]
    with pytest.raises(InputError, match=r"`data.facts`: 12 facts \(content "):
        run(others, 3, tmp_path / "kept-1" / "last.ckpt")


@pytest.mark.parametrize("made", [{"prompt": "The capital of Aro is "}, {"target": " Danube"}])
def test_a_fact_made_by_hand_is_scored_as_that_of_a_file(tiny_model, made):
    clean = Fact("a", "The capital of Aro is", "Danube")
    expected = score([clean], str(tiny_model)).to_arrow()
    by_hand = Fact(**{"id": "a", "prompt": clean.prompt, "target": clean.target, **made})
    assert score([by_hand], str(tiny_model)).to_arrow() == expected


def test_an_empty_target_made_by_hand_is_refused(tiny_model):
    with pytest.raises(InputError, match=r"facts, record 1: field `target`: expected text that is not empty"):
        score([Fact("a", "The capital of Aro is", "")], str(tiny_model))


def test_the_templates_of_a_built_in_set_that_was_read_are_found(tiny_model):
    data = KnowledgeDataModule(
        read_facts("world", num_facts=8), forms=FormsPlan([Templates(share=0.5)]), base_model=str(tiny_model)
    )
    data.setup()
    assert data.prepared.forms.num_facts_by_source(range(8))["templates"] > 0


def test_facts_that_are_not_taught_are_refused_without_naming_them(tiny_model, facts_file):
    facts = [{**record, "split": "probe"} for record in records(facts_file)]
    data = KnowledgeDataModule(facts, base_model=str(tiny_model))
    with pytest.raises(InputError, match=r"`facts` holds no fact with split `inject`"):
        data.setup()


def test_processes_with_other_facts_are_refused(tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr(prepare, "from_all_ranks", lambda key: [key, "another"])
    with pytest.raises(InputError, match=r"`facts` differ between the processes"):
        build_trainer().fit(build_module(tiny_model), datamodule=KnowledgeDataModule(records(facts_file)))
