"""Pairs of facts by their experts, against a count pair by pair, and what the page and the summary say of them."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from lit_semantic_peft.callbacks.routing_results import pairs_by_experts
from lit_semantic_peft.interference import InterferenceMatrix
from lit_semantic_peft.reports import ExpertRecord, PairsRecord, RoutingRecord, Summary
from lit_semantic_peft.reports.experts import experts_view
from lit_semantic_peft.reports.sentences import summary_sentences

ROWS = [3, 5, 8, 9]
ROUTING = RoutingRecord(
    match="subjects",
    num_names=3,
    num_opened={"fact": 3, "text": 0},
    num_asked={"fact": 3, "text": 4},
    effective_experts=1.5,
    experts=(
        ExpertRecord("model.layers.0.mlp", 0, 0.75, 6, ("<b>Zorvex</b>", "Aro")),
        ExpertRecord("model.layers.0.mlp", 1, 0.25, 1, ("Belvan",)),
    ),
    same_experts=PairsRecord(2, -0.25, 0.5),
    other_experts=PairsRecord(1, 0.126, 0.0),
)


def test_pairs_are_counted_by_their_experts():
    generator = torch.Generator().manual_seed(0)
    shares = [torch.rand(4, 3, generator=generator) for _ in range(3)]
    gradients = np.random.default_rng(0).normal(size=(5, 3))
    gradients[4] = 0  # has no cosine
    order = [8, 3, 9, 77, 5]  # another order, one fact that was not kept
    dot = (gradients @ gradients.T).astype(np.float32)
    found = pairs_by_experts(shares, ROWS, InterferenceMatrix(dot, np.array(order)))
    expected = {True: [], False: []}
    for left, right in combinations(ROWS, 2):
        one, other = (gradients[order.index(row)] for row in (left, right))
        if not (one.any() and other.any()):
            continue
        common = [part[ROWS.index(left)].argmax() == part[ROWS.index(right)].argmax() for part in shares]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        expected[bool(sum(common) >= len(common) / 2)].append(cosine)
    assert expected[True]
    assert expected[False]
    for side, values in expected.items():
        assert found[side].num_pairs == len(values)
        assert found[side].gradient_cosine == pytest.approx(np.mean(values), abs=1e-6)
        assert found[side].conflict_rate == pytest.approx(np.mean(np.array(values) < -0.05))
    assert pairs_by_experts(shares, ROWS, InterferenceMatrix(dot[:1, :1], np.array([3]))) == {}


def test_the_page_and_the_summary_say_where_what_goes():
    summary = Summary(3, 3, 0, routing=ROUTING)
    view = experts_view(summary)
    assert [row["load"] for row in view["rows"]] == ["75 %", "25 %"]
    assert [row["anchors"] for row in view["rows"]] == ["<b>Zorvex</b>, Aro, …", "Belvan"]
    assert [(row["name"], row["count"], row["cosine"]) for row in view["pairs"]] == [
        ("the same experts", 2, "−0.25"),
        ("different experts", 1, "+0.13"),
    ]
    assert experts_view(Summary(3, 3, 0)) is None
    assert Summary.from_json(summary.to_json()) == summary
    bare = summary.without_fact_text().routing
    assert bare == replace(ROUTING, experts=tuple(replace(one, anchors=()) for one in ROUTING.experts))


def test_a_sentence_says_what_experts_acted_on(run_folder):
    said = " ".join(summary_sentences(replace(run_folder.summary, routing=ROUTING), run_folder.facts))
    assert "The adapter acted on 3 of 7 questions" in said
    assert "Of 2 pairs of facts with the same experts 50 % are in conflict, of 1 pair with different ones 0 %" in said
