"""Validation and evaluation run as prefix trees where the self-check allows it, and find what padded batches do."""

import pytest
from lit_semantic_peft.evaluation import EvaluationPlan
from lit_semantic_peft.semantics import scoring
from lit_semantic_peft.tokens import cheaper_tree

from fixtures.training import build

PROBES = EvaluationPlan(probes=["paraphrase", "neighborhood", "choice"], retention=False)


def measured(tiny_model, facts_file, prefix_tree, self_check=True):
    """Scores, the comparisons of the test, and the tokens that ran in both."""
    data = {"evaluation": PROBES, "self_check": self_check}
    parts = build(
        tiny_model, facts_file, model={"prefix_tree": prefix_tree}, data=data, trainer={"limit_val_batches": None}
    )
    parts.module.configure_model()
    shapes = []

    def note(_, given):
        if not parts.trainer.sanity_checking and measuring:
            shapes.append(tuple(given[0].shape))

    measuring = False
    parts.module.model.get_input_embeddings().register_forward_pre_hook(note)
    parts.trainer.validate(parts.module, datamodule=parts.data, verbose=False)  # and the self-check
    measuring = True
    (validated,) = parts.trainer.validate(parts.module, datamodule=parts.data, verbose=False)
    validation = list(shapes)
    parts.trainer.test(parts.module, datamodule=parts.data, verbose=False)
    return parts, validated, validation, shapes


def test_they_find_what_padded_batches_find(tiny_model, facts_file):
    padded, trees, given = (measured(tiny_model, facts_file, setting) for setting in (False, None, True))
    for packed in (trees, given):
        assert packed[1] == pytest.approx(padded[1], rel=1e-5)
        sides = [run[0].module.evaluation.comparisons for run in (padded, packed)]
        for one, other in zip(*sides, strict=True):
            assert one.question == other.question
            assert (one.before.text, one.after.text) == (other.before.text, other.after.text)
            assert one.after.nll == pytest.approx(other.after.nll, rel=1e-5)
        for number in (2, 3):  # the validation alone, and all
            tokens = [sum(rows * length for rows, length in run[number]) for run in (padded, packed)]
            assert tokens[1] < tokens[0]


@pytest.mark.parametrize("setting", [False, None])
def test_the_setting_holds_for_the_scores_before_training(tiny_model, facts_file, setting, monkeypatch):
    trees = []
    monkeypatch.setattr(scoring, "cheaper_tree", lambda batch: trees.append(cheaper_tree(batch)))
    parts = build(tiny_model, facts_file, model={"prefix_tree": setting}, trainer={"limit_train_batches": 0})
    parts.trainer.fit(parts.module, datamodule=parts.data)
    assert bool(trees) == (setting is None)


@pytest.mark.parametrize(("setting", "self_check"), [(False, True), (None, False)])
def test_padded_where_told_so_or_never_checked(tiny_model, facts_file, setting, self_check):
    parts, _, (shape,), _ = measured(tiny_model, facts_file, setting, self_check)
    assert shape[0] == len(parts.data.prepared.facts)


def test_base_answers_of_trees_and_of_padded_batches_are_kept_apart(tiny_model, facts_file):
    """Their difference from unchanged answers is exactly 0 in either way."""
    manifests = []
    for setting in (False, None):
        parts, *_ = measured(tiny_model, facts_file, setting)
        for row in parts.module.evaluation.comparisons:
            assert row.before.nll == row.after.nll  # the adapter is new
        manifests.append(parts.module._answer_manifest())
    assert manifests[0] != manifests[1]
