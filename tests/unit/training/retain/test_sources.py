"""The sources of retained text: what each holds, of whom, and what it refuses."""

import json
from dataclasses import replace

import lit_semantic_peft.data.scoring as scoring
import numpy as np
import pytest
from lit_semantic_peft.data.builtin_known import builtin_facts, prompts_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import read_facts
from lit_semantic_peft.models.sampling import Sampling, sampled_answers
from lit_semantic_peft.semantics import KnownFilter
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training import (
    ContextTeacher,
    Continuations,
    KnownFacts,
    MaskedTarget,
    Neighbours,
    OwnSamples,
    RetainSplit,
    SubjectSamples,
    Text,
)
from lit_semantic_peft.training.retain import holding
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.subject_samples import OPENINGS

from fixtures.training import fit, with_retained


@pytest.fixture
def retain(tiny_model, facts_file, monkeypatch):
    """A run of one step with some sources, and the texts of each."""

    def run(*sources, facts=facts_file, **settings):
        prepared, texts, teachers = holding.with_texts, [], []

        contexts = []

        def noted(source, context):
            contexts.append(context)
            found = prepared(source, context)
            texts.append([one.student for one in found.texts])
            teachers.append([one.teacher for one in found.texts])
            return found

        monkeypatch.setattr(holding, "with_texts", noted)
        done = fit(tiny_model, facts, model={"retain": list(sources)}, trainer={"max_steps": 1}, **settings)
        monkeypatch.setattr(holding, "with_texts", prepared)
        done.teachers, done.context = teachers, contexts[-1]
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


def test_a_base_model_that_knows_nothing_is_a_warning(retain, caplog):
    run, texts = retain(KnownFacts(min_probability=0.9))
    assert texts == [[]]
    assert "`KnownFacts` retains nothing: the base model knows none of" in caplog.text
    assert "train/retain_kl" not in run.logged[-1]


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


def test_taught_texts_are_held_beside_their_targets(retain, facts_file):
    run, (texts,) = retain(MaskedTarget(), facts=with_retained(facts_file))
    assert texts == [
        EncodedFact(one.prompt_ids, one.target_ids + one.end_ids) for one in run.data.prepared.encoded[:12]
    ]
    assert all(one.end_ids for one in run.data.prepared.encoded)


def test_a_masked_target_is_held_while_it_is_learned(tiny_model, facts_file):
    run = fit(tiny_model, facts_file, model={"retain": [MaskedTarget(30.0, batch_size=12), OwnSamples(num_samples=8)]})
    free = fit(tiny_model, facts_file, model={"retain": [MaskedTarget(1e-6, batch_size=12), OwnSamples(num_samples=8)]})
    assert run.of("train/retain_kl/masked_target")[-1] < 0.5 * free.of("train/retain_kl/masked_target")[-1]
    assert run.losses[-1] < run.losses[0]


def test_a_teacher_reads_the_fact_first(retain):
    run, (texts,) = retain(ContextTeacher(context="Know: {fact}!\n"))
    prepared, encoder = run.data.prepared, run.data.encoder
    decode = encoder.tokenizer.decode
    for fact, encoded, student, teacher in zip(prepared.facts, prepared.encoded, texts, run.teachers[0], strict=True):
        assert student == EncodedFact(encoded.prompt_ids, encoded.target_ids)
        assert decode(teacher.prompt_ids) == f"Know: {fact.prompt} {fact.target}!\n{fact.prompt}"
        assert teacher.target_ids == encoded.target_ids


def test_own_words_stand_in_only_where_they_have_the_target(retain, monkeypatch):
    """The first fact's answer has its target, the second's has not."""

    def answers(context, prompts, length, sampling=None):
        encode = context.encoder.encode_ids
        first = f" surely {context.prepared.facts[0].target}"
        return [encode(first), *([encode(" who knows")] * (len(prompts) - 1))]

    monkeypatch.setattr(RetainContext, "continuations", answers)
    run, (texts,) = retain(ContextTeacher(answers="own_words"))
    encoded = run.data.prepared.encoded
    assert texts[0].target_ids == answers(run.context, [0], 1)[0] != encoded[0].target_ids
    assert [one.target_ids for one in texts[1:]] == [one.target_ids for one in encoded[1:]]
    assert [one.target_ids for one in run.teachers[0]] == [one.target_ids for one in texts]


def test_the_base_model_goes_on_after_a_target(retain):
    run, (texts,) = retain(Continuations(length=5), data={"append_eos": False})
    beginnings = [one.prompt_ids + one.target_ids for one in run.data.prepared.encoded]
    assert [one.prompt_ids for one in texts] == [ids for ids in beginnings if ids in {one.prompt_ids for one in texts}]
    assert len(texts) > 8
    assert {len(one.target_ids) for one in texts} <= {1, 2, 3, 4, 5}
    with pytest.raises(InputError, match=r"append_eos: false"):
        retain(Continuations(length=5))


def test_neighbours_are_about_other_subjects_that_are_not_asked(retain, facts_file):
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    for row in rows[:6]:
        row["subject"] = row["prompt"].split()[-2]
    for row in rows[6:]:
        row.pop("subject", None)
    facts_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run, (texts,) = retain(Neighbours(per_fact=3, length=4))
    decode = run.data.encoder.tokenizer.decode
    prompts = [decode(one.prompt_ids) for one in texts]
    assert 6 < len(prompts) <= 18
    assert len(set(prompts)) == len(prompts)
    pool = {fact.subject for fact in builtin_facts(run.data.prepared.facts, run.data.seed).retainable}
    for prompt in prompts:
        frame = [fact for fact in run.data.prepared.facts[:6] if prompt.startswith(fact.prompt.split(fact.subject)[0])]
        assert any(prompt == fact.prompt.replace(fact.subject, name) for fact in frame for name in pool), prompt


def test_neighbours_need_a_subject(retain, facts_file):
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({"prompt": row["prompt"], "target": row["target"]}) + "\n" for row in rows)
    facts_file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="`Neighbours`: no fact in training has a `subject`"):
        retain(Neighbours())


def test_samples_about_names_begin_with_subjects_and_targets_and_go_on_as_the_base_model_would(retain):
    run, (texts,) = retain(SubjectSamples(per_name=2, length=5))
    decode, prepared = run.data.encoder.tokenizer.decode, run.data.prepared
    names = {name for fact in prepared.facts for name in (fact.subject, fact.target)}
    prompts = [decode(one.prompt_ids) for one in texts]
    assert len(set(prompts)) == len(prompts)
    allowed = {opening.format(name) for name in names for opening in OPENINGS}
    assert set(prompts) <= allowed
    for name in names:
        assert sum(prompt in {opening.format(name) for opening in OPENINGS} for prompt in prompts) >= 1, name
    assert len(prompts) <= 2 * len(names)
    with run.context.base_model() as model:
        for one in texts[:3]:
            (answers,) = sampled_answers(
                model, [one.prompt_ids], [5], Sampling(1, 1.0, 0), pad_id=run.data.encoder.pad_id,
                stop_ids=run.data.encoder.stop_ids,
            )  # fmt: skip
            assert one.target_ids == tuple(answers[0])
    _, (others,) = retain(SubjectSamples(per_name=2, length=5, seed=1))
    assert [one.prompt_ids for one in others] != [one.prompt_ids for one in texts]


@pytest.mark.parametrize("names", ["subjects", "targets"])
def test_samples_may_be_about_one_side_of_the_facts(retain, names):
    run, (texts,) = retain(SubjectSamples(per_name=1, length=5, names=names))
    decode, facts = run.data.encoder.tokenizer.decode, run.data.prepared.facts
    side = {fact.subject if names == "subjects" else fact.target for fact in facts}
    prompts = {decode(one.prompt_ids) for one in texts}
    assert prompts <= {opening.format(name) for name in side for opening in OPENINGS}
    assert len(prompts) == len(side)


def test_samples_about_names_need_a_subject(retain, facts_file):
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({"prompt": row["prompt"], "target": row["target"]}) + "\n" for row in rows)
    facts_file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="`SubjectSamples`: no fact in training has a `subject`"):
        retain(SubjectSamples())
    _, (texts,) = retain(SubjectSamples(names="targets"))
    assert texts


def test_a_text_file_is_cut_into_pieces(retain, tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("The capital of France\nis Paris.\n\n  \nThe yen is the currency of Japan.\n", encoding="utf-8")
    run, (texts,) = retain(Text(str(file), length=4))
    ids = [one.prompt_ids + one.target_ids for one in texts]
    encoder = run.data.encoder
    sentences = ("The capital of France is Paris.", "The yen is the currency of Japan.")
    passages = [encoder.encode_ids(sentence) for sentence in sentences]
    opening = encoder.opening_ids[:1]
    expected = [(opening if at == 0 else ()) + one[at : at + 4] for one in passages for at in range(0, len(one), 4)]
    assert ids == [one for one in expected if len(one) > 1]
    assert {len(one.prompt_ids) for one in texts} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", r"own.txt: expected passages of text, .* got none"),
        (b"good\n\xff\n", r"own.txt: line 2: expected UTF-8"),
    ],
)
def test_a_text_file_that_cannot_be_used(retain, tmp_path, content, message):
    file = tmp_path / "own.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        retain(Text(str(file)))


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
        (Continuations, {"length": 0}, "`Continuations.length` must be at least 1, got 0"),
        (
            Continuations,
            {"temperature": -1.0},
            r"`Continuations.temperature` must be a finite number above 0, got -1\.0",
        ),
        (ContextTeacher, {"answers": "mine"}, "`ContextTeacher.answers` must be one of targets, own_words, got 'mine'"),
        (ContextTeacher, {"context": "x"}, "`ContextTeacher.context` 'x' has no `{fact}`"),
        (Neighbours, {"per_fact": 0}, "`Neighbours.per_fact` must be at least 1, got 0"),
        (SubjectSamples, {"per_name": 0}, "`SubjectSamples.per_name` must be at least 1, got 0"),
        (
            SubjectSamples,
            {"names": "all"},
            "`SubjectSamples.names` must be one of subjects_and_targets, subjects, targets",
        ),
        (SubjectSamples, {"length": 0}, "`SubjectSamples.length` must be at least 1, got 0"),
        (Text, {"file": "x.txt", "length": 1}, "`Text.length` must be at least 2, got 1"),
        (Text, {"file": "x.txt"}, "`Text.file`: expected a text file, got 'x.txt', which is not there"),
        (OwnSamples, {"temperature": 0.0}, r"`OwnSamples.temperature` must be a finite number above 0, got 0\.0"),
    ],
)
def test_settings_out_of_range(source, settings, message):
    with pytest.raises(InputError, match=message):
        source(**settings)
