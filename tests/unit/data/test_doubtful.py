"""Which facts count as contradicting the base model, and with which probability."""

import pytest
import torch
from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.data import EncodingPlan, doubtful
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.semantics import Surprisal
from lit_semantic_peft.semantics.scoring import score_facts
from lit_semantic_peft.semantics.table import ScoredFacts

PROMPT = "The capital of France is"


def table(answers, known=()):
    size = len(answers)
    zeros = torch.zeros(size, dtype=torch.float64).numpy()
    is_known = torch.tensor([row in known for row in range(size)]).numpy()
    names = tuple(map(str, range(size)))
    return ScoredFacts(names, names, zeros, zeros, is_known, base_answer=tuple(answers))


@pytest.mark.parametrize(
    ("target", "answer", "expected"),
    [
        ("Paris", "Lund, a town", "Lund"),
        ("Paris", "Paris in", None),
        ("Paris", "the Lund", None),
        ("Paris", "lund", None),
        ("yen", "krona", "krona"),
        ("yen", "the krona", None),
        ("the Rhine", "Rhine", None),
        ("1815", "1914.", "1914"),
        ("Paris", "", None),
        ("Paris", "...", None),
    ],
)
def test_what_contradicts(target, answer, expected):
    found = doubtful._contradicting([Fact("a", PROMPT, target)], table([answer]))
    assert found == ({} if expected is None else {0: expected})


def test_known_facts_and_those_that_are_not_taught_do_not_contradict():
    facts = [Fact("a", PROMPT, "Paris"), Fact("b", PROMPT, "Paris", split="retain"), Fact("c", PROMPT, "Paris")]
    assert doubtful._contradicting(facts, table(["Lund"] * 3, known=(0,))) == {2: "Lund"}


def test_probabilities_are_those_of_single_words_and_are_kept(tiny_model, tmp_path, monkeypatch):
    base = BaseModel(str(tiny_model))
    encoder, model = encoder_of(base, EncodingPlan()), base.load()
    monkeypatch.setattr(doubtful, "DOUBTFUL", 0.0)
    monkeypatch.setattr(doubtful, "_contradicting", lambda facts, scored: {0: "Lund", 2: "Danube"})
    prompts = [PROMPT, "The river of the town of Lund is", "The head office is in"]
    facts = [Fact(str(number), prompt, "Paris") for number, prompt in enumerate(prompts)]
    scored = score_facts(model, encoder, facts, [Surprisal()])
    cache = ContentCache(tmp_path / "kept")
    arguments = facts, scored, encoder.encode_facts(facts), base, encoder, torch.device("cpu"), cache
    found = {one.fact_id: one for one in doubtful.doubtful_facts(*arguments)}
    assert set(found) == {"0", "2"}
    for fact_id, word in (("0", "Lund"), ("2", "Danube")):
        one = encoder.encode(prompts[int(fact_id)], word)
        ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
        log_prob = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        start = len(one.prompt_ids) - 1
        expected = sum(log_prob[start + place, token] for place, token in enumerate(one.target_ids)).exp()
        assert found[fact_id].probability == pytest.approx(float(expected), rel=1e-4)
    target = encoder.encode(PROMPT, "Paris").num_target_tokens
    assert found["0"].target_probability == pytest.approx(float(torch.tensor(-scored.base_nll[0] * target).exp()))
    order = [one.probability for one in doubtful.doubtful_facts(*arguments)]
    assert order == sorted(order, reverse=True)
    monkeypatch.setattr(BaseModel, "load", lambda self: pytest.fail("the second call needs no model"))
    assert [one.probability for one in doubtful.doubtful_facts(*arguments)] == order
    monkeypatch.setattr(doubtful, "DOUBTFUL", 1.1)
    assert doubtful.doubtful_facts(*arguments) == []
