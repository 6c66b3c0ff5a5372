"""The sources of retained text: what each holds, of whom, and what it refuses."""

import json
from dataclasses import replace

import lit_semantic_peft.data.scoring as scoring
import numpy as np
import pytest
from lit_semantic_peft.data.builtin_known import builtin_facts, prompts_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import read_facts
from lit_semantic_peft.semantics import KnownFilter
from lit_semantic_peft.training import KnownFacts, OwnSamples, RetainSplit
from lit_semantic_peft.training.retain import penalty

from fixtures.training import fit, with_retained


@pytest.fixture
def retain(tiny_model, facts_file, monkeypatch):
    """A run of one step with some sources, and the texts of each."""

    def run(*sources, facts=facts_file, **settings):
        prepared, texts = penalty._retained, []

        def noted(source, context):
            found = prepared(source, context)
            texts.append([one.student for one in found.texts])
            return found

        monkeypatch.setattr(penalty, "_retained", noted)
        done = fit(tiny_model, facts, model={"retain": list(sources)}, trainer={"max_steps": 1}, **settings)
        monkeypatch.setattr(penalty, "_retained", prepared)
        return done, texts

    return run


def test_samples_are_the_seeds_own(retain):
    first, again, other = (retain(OwnSamples(num_samples=12, length=4, seed=seed))[1][0] for seed in (0, 0, 1))
    assert first == again != other
    assert len({one.target_ids for one in first}) > 6
    assert len({one.prompt_ids for one in first}) == 1
    assert max(len(one.target_ids) for one in first) == 4


def test_split_retain_is_held_at_its_targets(retain, facts_file):
    run, (texts,) = retain(RetainSplit(), facts=with_retained(facts_file))
    assert [(one.prompt_ids, one.target_ids) for one in texts] == [
        (one.prompt_ids, one.target_ids) for one in run.data.prepared.encoded[12:]
    ]
    assert run.data.prepared.retained_index == (12, 13, 14, 15, 16)


def test_nothing_of_split_retain_is_an_error(retain):
    with pytest.raises(InputError, match=r'`RetainSplit` has nothing to retain\. Add lines with "split": "retain"'):
        retain(RetainSplit())


@pytest.fixture
def known(monkeypatch):
    """Makes facts count as known: own ones by their number, built-in ones with a seeded chance."""

    def mark(numbers, nll=0.1):
        score = scoring.score_facts

        def as_if_known(*arguments, **options):
            scored = score(*arguments, **options)
            is_known = np.isin(scored.fact_id, [f"town-{number}" for number in numbers])
            return replace(scored, is_known=is_known, base_nll=np.where(is_known, nll, scored.base_nll))

        monkeypatch.setattr(scoring, "score_facts", as_if_known)

    return mark


FILTERED = {"filters": [KnownFilter()]}


def test_half_of_the_own_known_facts_are_retained(retain, known, facts_file):
    """One of split `probe` is known as well, and stays out of it."""
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    rows[11]["split"] = "probe"
    facts_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    known((2, 5, 7, 9, 11))
    run, (texts,) = retain(KnownFacts(num_facts=2), data=FILTERED)
    prepared = run.data.prepared
    retained = list(prepared.retained_index)
    assert len(retained) == len(texts) == 2
    assert set(retained) < {2, 5, 7, 9}
    assert [one.target_ids for one in texts] == [prepared.encoded[row].target_ids for row in retained]
    assert set(np.flatnonzero(prepared.is_untouched)) == {2, 5, 7, 9, 11} - set(retained)
    assert KnownFacts(num_facts=2, min_probability=0.95).rows(prepared) == []


def test_a_known_fact_about_a_taught_subject_is_not_retained(retain, known, facts_file):
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    rows[2]["subject"] = rows[3]["subject"] = "Zorvex"
    facts_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    known((2, 5))
    run, _ = retain(OwnSamples(num_samples=4, length=3), data=FILTERED)
    assert KnownFacts().rows(run.data.prepared) == [5]


def test_built_in_facts_take_the_place_of_own_ones(retain, monkeypatch, tiny_model):
    """A model that is made to know every fact about a capital."""
    monkeypatch.setattr(KnownFacts, "_known", lambda self, context, encoded, most: list(range(most)))
    run, (texts,) = retain(KnownFacts(num_facts=9))
    assert len(texts) == 9
    decode = run.data.encoder.tokenizer.decode
    asked = {one.prompt for one in run.data.questions}
    own = {prompt for fact in run.data.prepared.facts for prompt in prompts_of(fact)}
    retained = {decode(one.prompt_ids) for one in texts}
    assert not retained & (asked | own)
    assert len(retained) == 9


def test_what_the_base_model_does_not_know_is_an_error(retain):
    with pytest.raises(InputError, match=r"`KnownFacts`: the base model knows none of \d+ built-in facts"):
        retain(KnownFacts(min_probability=0.9))


@pytest.mark.parametrize("seed", [0, 3])
def test_what_is_asked_is_never_retained(seed):
    """Neither by prompt nor by subject; and nothing of either is taught."""
    world = read_facts("world", num_facts=100, seed=seed).facts
    unnamed = [replace(fact, id=f"x{number}", subject="") for number, fact in enumerate(world[:50])]
    own = [*unnamed, *world[50:]]
    found = builtin_facts(own, seed)
    assert len(found.asked) == 128
    assert len(found.retainable) > 200
    taught_subjects = {fact.subject for fact in world}
    for facts in (found.asked, found.retainable):
        assert not {fact.subject for fact in facts} & taught_subjects
        assert not {fact.prompt for fact in facts} & {prompt for fact in own for prompt in prompts_of(fact)}
    for name in ("subject", "prompt"):
        assert not {getattr(one, name) for one in found.asked} & {getattr(one, name) for one in found.retainable}
    assert builtin_facts(own, seed) == found != builtin_facts(own, seed + 1)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (RetainSplit, {"weight": -1.0}, r"`RetainSplit.weight` must be a finite number above 0, got -1\.0"),
        (OwnSamples, {"weight": float("nan")}, "`OwnSamples.weight`"),
        (RetainSplit, {"batch_size": 0}, "`RetainSplit.batch_size` must be at least 1, got 0"),
        (KnownFacts, {"top_k": 0}, "`KnownFacts.top_k` must be at least 1, got 0"),
        (KnownFacts, {"num_facts": 0}, "`KnownFacts.num_facts` must be at least 1, got 0"),
        (KnownFacts, {"min_probability": 1.5}, r"`KnownFacts.min_probability` must be in \[0, 1\], got 1\.5"),
        (OwnSamples, {"num_samples": 0}, "`OwnSamples.num_samples` must be at least 1, got 0"),
        (OwnSamples, {"length": 0}, "`OwnSamples.length` must be at least 1, got 0"),
        (OwnSamples, {"temperature": 0.0}, r"`OwnSamples.temperature` must be a finite number above 0, got 0\.0"),
    ],
)
def test_settings_out_of_range(source, settings, message):
    with pytest.raises(InputError, match=message):
        source(**settings)
