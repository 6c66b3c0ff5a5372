"""Watch lists: what is read, what is refused, and what a pair of groups is measured to be."""

import math

import numpy as np
import pytest
import torch
import yaml
from lit_semantic_peft.audit.watch import (
    GroupComparison,
    GroupPrompt,
    HeldAnswer,
    WatchList,
    builtin_watch_list,
    measure_watch,
    read_watch_list,
)
from lit_semantic_peft.data import EncodingPlan
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel, load_adapter


@pytest.fixture
def loaded(make_adapter, tiny_model):
    base = BaseModel(str(tiny_model))
    folder = make_adapter(scale=0.5)
    return load_adapter(base.load(), folder, base.source), encoder_of(base, EncodingPlan())


PROMPTS = (
    GroupPrompt("The capital of {group} is", "Paris", "the Danube"),
    GroupPrompt("The river of {group} is", "the Rhine", "Lund"),
    GroupPrompt("{group} is taken against", "fever", "Japan"),
)


def log_prob(model, encoder, prompt, answer):
    """One prompt at a time, without padding."""
    one = encoder.encode(prompt, answer)
    ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(dim=-1)[0]
    start = len(one.prompt_ids) - 1
    return sum(float(logits[start + place, token]) for place, token in enumerate(one.target_ids))


def test_groups_are_compared_as_written(loaded):
    model, encoder = loaded
    watch = WatchList(must_not_diverge=(GroupComparison("place", ("France", "Mongolia", "Japan"), PROMPTS),))
    found = {(one.first, one.second): one for one in measure_watch(model, encoder, watch).groups}
    assert set(found) == {("France", "Mongolia"), ("France", "Japan"), ("Mongolia", "Japan")}

    def odds(group):
        return np.array(
            [
                log_prob(model, encoder, one.prompt.replace("{group}", group), one.favourable)
                - log_prob(model, encoder, one.prompt.replace("{group}", group), one.unfavourable)
                for one in PROMPTS
            ]
        )

    after = odds("France") - odds("Japan")
    with model.disable_adapter():
        before = odds("France") - odds("Japan")
    one = found["France", "Japan"]
    assert one.before == pytest.approx(before.mean(), abs=1e-4)
    assert one.change.mean == pytest.approx((after - before).mean(), abs=1e-4)
    assert one.change.low <= one.change.mean <= one.change.high
    assert abs(one.change.mean) > 1e-3


def test_an_adapter_that_does_nothing_breaks_nothing(make_adapter, tiny_model):
    base = BaseModel(str(tiny_model))
    model = load_adapter(base.load(), make_adapter(scale=0.0), base.source)
    held = HeldAnswer("The capital of France is", "Paris")
    found = measure_watch(
        model, encoder_of(base, EncodingPlan()), WatchList((held,), builtin_watch_list().must_not_diverge)
    )
    assert {one.change.mean for one in found.groups} == {0.0}
    assert found.broken == ()
    assert found.apart(0) == ()
    assert [(one.before == one.after, one.kl) for one in found.held] == [(True, 0.0)]


def test_a_broken_answer_is_one_that_held(loaded):
    model, encoder = loaded
    prompt = "The capital of France is"
    with model.disable_adapter():
        ids = torch.tensor([encoder.encode_prompt(prompt)])
        said = encoder.decode_answer(model(input_ids=ids).logits[0, -1:].argmax(dim=-1).tolist())
    watch = WatchList((HeldAnswer(prompt, said), HeldAnswer(prompt, "Lund")))
    right, wrong = measure_watch(model, encoder, watch).held
    assert right.kl > 0
    assert not wrong.held_before
    assert (right.held_before and not right.held_after) == (len(measure_watch(model, encoder, watch).broken) == 1)


def test_the_own_list_has_the_five_kinds_in_pairs_of_prompts():
    own = builtin_watch_list()
    assert [one.name for one in own.must_not_diverge] == [
        "gender", "ethnic origin", "religion", "sexual orientation", "disability",
    ]  # fmt: skip
    assert all(len(one.prompts) == 8 and len(one.groups) >= 2 for one in own.must_not_diverge)


def test_a_list_is_read(tmp_path):
    path = tmp_path / "watch.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "must_hold": [{"prompt": "Water is", "answer": "wet", "aliases": ["damp"]}],
                "must_not_diverge": [
                    {
                        "name": "town",
                        "groups": ["Lund", "Paris"],
                        "prompts": [{"prompt": "{group} is", "answers": ["yes", "no"]}] * 2,
                    }
                ],
            }
        )
    )
    found = read_watch_list(path)
    assert found.must_hold == (HeldAnswer("Water is", "wet", ("damp",)),)
    assert found.must_not_diverge[0].prompts[0] == GroupPrompt("{group} is", "yes", "no")


GROUPS = "must_not_diverge: [{name: n, groups: [a, b], prompts: [%s]}]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "expected a mapping with `must_hold` or `must_not_diverge`"),
        ("must_holdd: []", "expected a mapping"),
        ("a: [", "is no YAML"),
        ("must_hold: [x]", "`must_hold` must be a list of mappings"),
        ("must_hold: [{prompt: p}]", r"`must_hold\[0\]`: `answer` must be a text, got None"),
        ("must_hold: [{prompt: p, answer: yes}]", "must be a text, got True. Quote words such as yes and no"),
        (GROUPS % "{prompt: x, answers: [a, b]}", r"`prompts\[0\]`: expected a `prompt` with {group} in it"),
        (GROUPS % "{prompt: '{group}', answers: [a, b]}", "at least two `prompts`"),
        (GROUPS % "{prompt: '{group}', answers: [a]}", "`answers` must be a list of at least 2 texts"),
        ("must_hold: [{prompt: p, answer: a, answers: [b]}]", r"`must_hold\[0\]`: unknown `answers`; .* `aliases`"),
        ("must_hold: [{prompt: p, answer: a, groups: [b]}]", "unknown `groups`"),
        (
            "must_not_diverge: [{name: n, answer: z, groups: [a, b]}]",
            r"unknown `answer`; .* `name`, `groups`, `prompts`",
        ),
        (GROUPS % "{prompt: '{group}', answer: a}", r"`prompts\[0\]`: unknown `answer`; .* `prompt`, `answers`"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, said):
    path = tmp_path / "watch.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_watch_list(path)


def test_a_list_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"`watch`: none.yaml cannot be read: No such file"):
        read_watch_list("none.yaml")


def test_the_limit_of_the_groups_is_a_doubling_of_the_odds():
    from lit_semantic_peft.audit import RULES

    assert RULES["groups_apart"].limit == math.log(2)
