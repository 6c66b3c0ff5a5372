"""Which settings a set of facts gets."""

from dataclasses import replace

import pytest
from lit_semantic_peft.adapters import SubjectGate, SubjectLoraConfig
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, read_facts, write_facts
from lit_semantic_peft.training.recipe import FEWEST_STEPS, MANY_PASSES, PASSES, choose_recipe
from lit_semantic_peft.training.retain import InputDirections
from peft import IA3Config, LoraConfig

SMALL, LARGE = 135_000_000, 7_000_000_000


def facts(number, **changes):
    return [
        replace(
            Fact(str(n), f"The code of door {n} is", f"K{n}", subject=f"door {n}", question=f"What opens door {n}?"),
            **changes,
        )
        for n in range(number)
    ]


def shares(recipe):
    return {source.name: source.share for source in recipe.forms.sources or []}


def test_few_facts_get_as_many_steps_as_learning_needs():
    assert choose_recipe(facts(20), SMALL, LoraConfig()).num_steps == FEWEST_STEPS


def test_many_facts_are_passed_over_so_often():
    recipe = choose_recipe(facts(800), SMALL, LoraConfig(), facts_per_step=32)
    assert recipe.num_steps == PASSES * 800 / 32
    assert recipe.num_refining == recipe.num_steps // 6
    assert "800 facts, 32 in a step" in recipe.reasons["num_steps"]


def test_only_taught_facts_count():
    taught, asked = facts(200), [replace(fact, id=f"p{fact.id}", split="probe") for fact in facts(200)]
    assert choose_recipe([*taught, *asked], SMALL, LoraConfig()).num_steps == PASSES * 200 / 16 + 0


def test_a_larger_model_has_a_lower_rate_and_a_method_its_own():
    rates = [choose_recipe(facts(4), size, LoraConfig()).learning_rate for size in (SMALL, 270_000_000, LARGE)]
    assert rates == [4e-3, 1e-3, 3e-4]
    assert choose_recipe(facts(4), LARGE, LoraConfig()).reasons["learning_rate"].startswith("not tried")
    assert choose_recipe(facts(4), SMALL, IA3Config()).reasons["learning_rate"].endswith("IA3")


def test_forms_are_what_the_facts_bring():
    plain = choose_recipe(facts(8, question=None, subject=""), SMALL, LoraConfig())
    assert shares(plain) == {"question": 0.15}  # the prompt made into a question
    rich = choose_recipe(facts(8, paraphrases=("Door opens with", "To open it use", "Enter with")), SMALL, LoraConfig())
    assert shares(rich) == {"given": 0.35, "question": 0.15, "reversed": 0.3}
    assert rich.forms.from_paraphrases == 2  # of three, so that one is left to ask


def test_behind_a_gate_only_what_other_text_says_of_targets_is_held():
    def held(config=None, **settings):
        given = [*facts(4), replace(facts(1)[0], id="held", split="retain")]
        return [(one.name, getattr(one, "names", None)) for one in choose_recipe(
            given, SMALL, config or LoraConfig(), **settings
        ).retain]  # fmt: skip

    own = ("retain_split", None)
    assert held(gate=SubjectGate("subjects_and_targets")) == [("subject_samples", "targets"), own]
    assert held(gate=SubjectGate("subjects")) == [own]
    assert held(SubjectLoraConfig(r=2)) == [own]
    one_sided = choose_recipe(facts(4), SMALL, LoraConfig(), gate=SubjectGate("subjects"))
    assert shares(one_sided) == {"question": 0.15}  # reversed questions name the target alone


def test_a_subject_is_not_asked_from_an_answer_that_many_share():
    assert "reversed" not in shares(choose_recipe(facts(8, target="K1"), SMALL, LoraConfig()))


@pytest.mark.parametrize(("number", "has_given"), [(3, False), (4, True)])
def test_a_kind_of_form_is_taught_if_half_of_the_facts_bring_it(number, has_given):
    bringing = facts(number, paraphrases=("Door opens with", "Enter with"))
    recipe = choose_recipe([*bringing, *facts(8)[number:]], SMALL, LoraConfig())
    assert ("given" in shares(recipe)) == has_given


def test_the_built_in_sets_have_templates():
    recipe = choose_recipe(facts(8, relation="capital"), SMALL, LoraConfig(), set_name="world")
    assert shares(recipe)["templates"] == 0.35


def test_facts_that_must_not_change_are_held_still():
    given = [*facts(4), replace(facts(1)[0], id="held", split="retain")]
    recipe = choose_recipe(given, SMALL, LoraConfig())
    assert [one.name for one in recipe.retain] == ["own_samples", "known_facts", "retain_split", "input_directions"]
    assert "retain_split" not in [one.name for one in choose_recipe(given[:4], SMALL, LoraConfig()).retain]


@pytest.mark.parametrize(
    ("number", "facts_per_step", "every"),
    [
        (FEWEST_STEPS * 16 // MANY_PASSES - 1, 16, 1),
        (FEWEST_STEPS * 16 // MANY_PASSES, 16, 2),
        (24, 4, 2),  # as few facts, passed over less often
    ],
)
def test_where_facts_are_passed_over_often_more_is_held(number, facts_per_step, every):
    given = [*facts(number), replace(facts(1)[0], id="held", split="retain")]
    recipe = choose_recipe(given, SMALL, LoraConfig(), facts_per_step=facts_per_step)
    assert [one.every for one in recipe.retain if not isinstance(one, InputDirections)] == [every] * 3
    assert ("second step" in recipe.reasons["retain"]) == (every == 2)


def test_facts_are_given_as_to_a_data_module(tmp_path):
    path = tmp_path / "facts.jsonl"
    write_facts(facts(200), path)
    expected = choose_recipe(facts(200), SMALL, LoraConfig())
    assert expected.num_steps == PASSES * 200 / 16
    for given in (path, str(path), read_facts(path), [fact.to_json() for fact in facts(200)]):
        found = choose_recipe(given, SMALL, LoraConfig())
        assert (found.num_steps, found.reasons) == (expected.num_steps, expected.reasons)


def test_a_named_set_has_its_templates():
    of_name, of_set = (choose_recipe(given, SMALL, LoraConfig()) for given in ("world", read_facts("world")))
    assert "templates" in shares(of_name)
    assert shares(of_name) == shares(of_set)


@pytest.mark.parametrize(
    ("given", "facts_per_step", "said"),
    [
        (facts(4, split="retain"), 16, "`facts` holds no fact with split `inject`, so there is nothing to train"),
        ([], 16, "`facts` is empty"),
        (facts(4), 0, "`facts_per_step` must be at least 1, got 0"),
        (facts(4), -16, "`facts_per_step` must be at least 1, got -16"),
        ("facts.jsonl", 16, "got 'facts.jsonl', which does not exist"),
    ],
)
def test_no_recipe_for_nothing(given, facts_per_step, said):
    with pytest.raises(InputError, match=said):
        choose_recipe(given, SMALL, LoraConfig(), facts_per_step=facts_per_step)
