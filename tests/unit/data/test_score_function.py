"""`score` as a function, and `KnowledgeTrainer.score`, which leaves module and data module as they were."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lit_semantic_peft.cli.trainer import KnowledgeTrainer
from lit_semantic_peft.data import score
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import read_facts
from lit_semantic_peft.models import BaseModel, adapter_state_dict
from lit_semantic_peft.semantics import HiddenStateDistance, RandomFilter, Surprisal
from peft import PrefixTuningConfig
from transformers import PreTrainedModel

from fixtures.training import ONLY_FACTS, build, build_data


def test_a_table_without_a_training(tiny_model, facts_file):
    table = score(str(facts_file), str(tiny_model), [HiddenStateDistance()])
    frame = table.to_pandas()
    distances = ["distance_HiddenStateDistance", "distance_Surprisal"]
    about = ["fact_id", "subject", "relation", "prompt", "target", "split"]
    assert list(frame.columns) == [*about, *distances, "base_nll", "is_known", "base_answer"]
    assert table.to_arrow().column_names == list(frame.columns)
    facts = read_facts(str(facts_file)).facts
    assert frame.prompt.tolist() == [fact.prompt for fact in facts]
    data = build_data(tiny_model, facts_file, distance=HiddenStateDistance())
    data.setup("fit")
    assert frame.base_nll.tolist() == data.prepared.scored.base_nll.tolist()
    assert frame.distance_HiddenStateDistance.tolist() == data.prepared.scored.distance.tolist()


def test_the_scores_of_a_named_model_come_from_the_cache_and_those_of_a_loaded_one_do_not(
    tiny_model, facts_file, tmp_path, monkeypatch
):
    base = BaseModel(str(tiny_model))
    facts = read_facts(str(facts_file)).facts
    model, tokenizer = base.load(), base.load_tokenizer()
    named = score(facts, base, cache_dir=tmp_path / "cache").to_arrow()
    monkeypatch.setattr(BaseModel, "load", None)
    assert score(facts, base, cache_dir=tmp_path / "cache").to_arrow() == named
    model.train()
    loaded = score(facts, model, tokenizer=tokenizer).to_arrow()
    assert model.training, "the model's mode is its own again"
    for name in named.column_names:
        if name.startswith(("distance", "base_nll")):
            np.testing.assert_allclose(loaded[name].to_numpy(), named[name].to_numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert loaded[name] == named[name]
    assert isinstance(model, PreTrainedModel)


def test_a_cached_table_of_other_facts_is_made_anew(tiny_model, facts_file, tmp_path, caplog):
    facts = read_facts(str(facts_file)).facts
    whole = score(facts, str(tiny_model), cache_dir=tmp_path / "cache").to_arrow()
    (cached,) = (tmp_path / "cache").rglob("*.parquet")
    table = pq.read_table(cached)
    ids = table.column("fact_id").to_pylist()
    pq.write_table(table.set_column(table.column_names.index("fact_id"), "fact_id", [ids[::-1]]), cached)
    assert score(facts, str(tiny_model), cache_dir=tmp_path / "cache").to_arrow() == whole
    assert "the scores are of other facts" in caplog.text
    assert pq.read_table(cached) == table, "made anew"


@pytest.mark.parametrize("change", ["ids", "order of ids", "texts", "targets", "subjects"])
def test_a_cache_of_other_facts_gives_the_scores_of_the_given_ones(tiny_model, facts_file, tmp_path, change):
    facts = read_facts(str(facts_file)).facts
    others = [
        replace(
            fact,
            **{
                "ids": {"id": f"other-{fact.id}"},
                "order of ids": {"id": last.id},
                "texts": {"prompt": last.prompt},
                "targets": {"target": last.target},
                "subjects": {"subject": "Aro"},
            }[change],
        )
        for fact, last in zip(facts, reversed(facts), strict=True)
    ]
    distances = [HiddenStateDistance(), Surprisal()]
    fresh = score(others, str(tiny_model), distances, cache_dir=tmp_path / "fresh").to_arrow()
    first = score(facts, str(tiny_model), distances, cache_dir=tmp_path / "cache").to_arrow()
    second = score(others, str(tiny_model), distances, cache_dir=tmp_path / "cache").to_arrow()
    assert second == fresh
    assert second != first


def test_what_score_cannot_use_is_refused(tiny_model, facts_file):
    base = BaseModel(str(tiny_model))
    with pytest.raises(InputError, match="`facts` is empty"):
        score([], base)
    with pytest.raises(InputError, match="`tokenizer` is missing"):
        score(str(facts_file), base.load())
    with pytest.raises(InputError, match="`tokenizer` belongs to a model that is loaded"):
        score(str(facts_file), base, tokenizer=base.load_tokenizer())


def test_facts_that_share_an_id_are_refused_and_not_mixed_up(tiny_model, facts_file):
    first, second, *_ = read_facts(str(facts_file)).facts
    with pytest.raises(InputError, match=rf"record 3: field `id`: .* no other fact has, got '{first.id}'"):
        score([first, second, replace(second, id=first.id)], str(tiny_model))


def test_one_pipeline_for_every_form_of_the_same_arguments(tiny_model, facts_file):
    expected = score(str(facts_file), str(tiny_model), [Surprisal()]).to_arrow()
    facts = read_facts(str(facts_file))
    for given in (facts, facts.facts, list(facts.facts), Path(facts_file)):
        assert score(given, Path(tiny_model), Surprisal()).to_arrow() == expected


def test_the_split_of_a_named_set_can_be_chosen(tiny_model, facts_file, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    rows = [{name: row[name] for name in ("prompt", "target")} for row in rows]
    splits = {"train": datasets.Dataset.from_list(rows[:4]), "test": datasets.Dataset.from_list(rows[4:7])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    found = score(tmp_path / "set", str(tiny_model), Surprisal(), dataset_split="test")
    assert [fact.prompt for fact in found.facts] == [row["prompt"] for row in rows[4:7]]
    with pytest.raises(InputError, match=r"`dataset_split` is .* but `facts` has no splits"):
        score(found.facts, str(tiny_model), dataset_split="test")


def test_a_warning_of_the_reader_is_passed_on(tiny_model, facts_file, caplog):
    score(str(contradicting(facts_file)), str(tiny_model), Surprisal())
    assert "the same prompt as an earlier fact with another target, kept" in caplog.text


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("facts", 3, r"`facts`: expected the name of a set.* got int$"),
        ("facts", [3], r"`facts`: .* item 0 is of type int"),
        ("model", 3, r"`model`: expected a base model, .* got int$"),
        ("distances", "Surprisal", r"`distances`: expected a distance .* got 'Surprisal'"),
        ("distances", [Surprisal], r"`distances`: expected a distance .* got <class"),
        ("encoding", {"template": "chat"}, r"`encoding`: expected an `EncodingPlan`.* got \{'template': 'chat'\}"),
    ],
)
def test_an_argument_of_another_type_says_what_is_expected(tiny_model, facts_file, argument, value, said):
    arguments = {"facts": str(facts_file), "model": str(tiny_model), argument: value}
    with pytest.raises(InputError, match=said):
        score(**arguments)


def test_a_fact_alone_is_to_be_put_in_a_list(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"got Fact; put it in a list"):
        score(read_facts(str(facts_file)).facts[0], str(tiny_model))


def contradicting(facts_file: Path) -> Path:
    path = facts_file.with_name("contradicting.jsonl")
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    rows.append({"prompt": rows[0]["prompt"], "target": "nowhere at all"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_training_after_score_refuses_contradictions_as_before(tiny_model, facts_file, tmp_path, capsys):
    parts = build(tiny_model, contradicting(facts_file), data={"evaluation": ONLY_FACTS, "base_model": None})
    trainer = KnowledgeTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    prepared = trainer.score(parts.module, parts.data, output=str(tmp_path / "scores"))
    assert len(prepared.facts) == 13
    assert "Contradictions (same prompt, different targets): 1" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"different targets|contradict"):
        parts.trainer.fit(parts.module, datamodule=parts.data)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"gradient_checkpointing": True, "peft_config": PrefixTuningConfig(num_virtual_tokens=2)},
            "`gradient_checkpointing` cannot be used with PrefixTuningConfig, which works through the cache",
        ),
        ({"adapter": "runs/one/adapter"}, "`model.adapter` 'runs/one/adapter' is for `test` and `predict`"),
    ],
)
def test_a_warm_up_is_refused_where_a_training_would_be(tiny_model, facts_file, tmp_path, model, said):
    parts = build(tiny_model, facts_file, model=model)
    trainer = KnowledgeTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match=said):
        trainer.score(parts.module, parts.data, output=str(tmp_path / "scores"), warmup_steps=2)
    assert not (tmp_path / "scores").exists()
    trainer.score(parts.module, parts.data, output=str(tmp_path / "scores"))  # no adapter is trained


def test_a_training_after_score_is_the_training_without_it(tiny_model, facts_file, tmp_path):
    trained = []
    for is_scored in (False, True):
        settings = {"evaluation": ONLY_FACTS, "filters": [RandomFilter(keep=0.7)]}
        parts = build(tiny_model, facts_file, data=settings)
        if is_scored:
            before = {**vars(parts.data)}
            trainer = KnowledgeTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
            trainer.score(parts.module, parts.data, output=str(tmp_path / "scores"), warmup_steps=2)
            assert vars(parts.data) == before
            torch.manual_seed(0)
        parts.trainer.fit(parts.module, datamodule=parts.data)
        trained.append(adapter_state_dict(parts.module.model))
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
