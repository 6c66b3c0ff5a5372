"""What cannot be held still, and token weights that cannot be had."""

import pytest

from fixtures.bad_inputs import GOOD, BadInput

BEGUN = ("runs",)


def retain(kind, **settings):
    """A call of `fit` with one source of retained text."""
    return [
        "fit",
        "--model.retain",
        repr([{"class_path": f"lit_semantic_peft.training.{kind}", "init_args": settings}]),
    ]


def tokens(kind, **settings):
    """A call of `fit` with a weighting of target tokens."""
    value = repr({"class_path": f"lit_semantic_peft.semantics.{kind}", "init_args": settings})
    return ["fit", "--data.selection.token_weighting", value]


CASES = [
    BadInput("a weight of 0", retain("OwnSamples", weight=0.0), ["`OwnSamples.weight`", "above 0", "got 0.0"]),
    BadInput("an unknown setting of a source", retain("OwnSamples", samples=3), ["samples"]),
    BadInput("a source that does not exist", retain("OwnSample"), ["OwnSample", "OwnSamples"]),
    BadInput("no such text file", retain("Text", file="no.txt"), ["`Text.file`", "'no.txt'", "not there"]),
    BadInput(
        "a text that is not UTF-8",
        retain("Text", file="own.txt"),
        ["own.txt: line 2: expected UTF-8"],
        {"own.txt": b"a\n\xff"},
        leaves=BEGUN,
    ),
    BadInput(
        "an empty text",
        retain("Text", file="own.txt"),
        ["own.txt: expected passages of text"],
        {"own.txt": "\n"},
        leaves=BEGUN,
    ),
    BadInput("no fact of split retain", retain("RetainSplit"), ["`RetainSplit`", '"split": "retain"'], leaves=BEGUN),
    BadInput(
        "neighbours of facts without subject",
        [*retain("Neighbours"), "--data.facts=bare.jsonl"],
        ["`Neighbours`", "`subject`"],
        {"bare.jsonl": [GOOD]},
        leaves=BEGUN,
    ),
    BadInput("continuations behind an end token", retain("Continuations"), ["`data.encoding.append_eos: false`"]),
    BadInput(
        "the settings of before",
        "fit --model.retain_weight=1 --model.retain_known=true",
        ["`model.retain_weight` is now `model.retain: ", "RetainSplit", "`model.retain_known` is now", "KnownFacts"],
    ),
    BadInput("a gate above 1", tokens("ConfidenceGate", tau=1.5), ["`tau`", "(0, 1]", "1.5"]),
    BadInput("a term without weight", tokens("SemanticDistanceTerm", weight=0.0), ["`weight`", "above 0"]),
    BadInput(
        "token weights beside gradient surgery",
        [
            *tokens("ConfidenceGate"),
            "--trainer.callbacks=[{class_path: lit_semantic_peft.training.GradientSurgery}]",
        ],
        ["ConfidenceGate", "GradientSurgery"],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_cannot_be_held_still(case, refused):
    refused(case)
