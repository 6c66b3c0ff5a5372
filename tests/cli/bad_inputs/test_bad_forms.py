"""Forms that cannot be taught, in the data, in the settings and in files of templates."""

import pytest

from fixtures.bad_inputs import GOOD, BadInput

TEMPLATES = "fit --data.forms.sources+=Templates --data.forms.sources.file=t.yaml"
TOWN = {**GOOD, "subject": "Aro", "relation": "capital"}

CASES = [
    BadInput("a share", "fit --data.forms.sources+=Cloze --data.forms.sources.share=2", ["`share` of Cloze", "got 2"]),
    BadInput(
        "paraphrases without Given",
        "fit --data.forms.from_paraphrases=1",
        ["`forms.from_paraphrases` is 1", "Add `Given` to `forms.sources`"],
    ),
    BadInput(
        "no form",
        "fit --data.forms.num_per_fact=0",
        ["`forms.num_per_fact` must be at least 1, got 0", "leave `forms.sources` empty"],
    ),
    BadInput("an unknown source", "fit --data.forms.sources+=Clozes", ["Did you mean `lit_semantic_peft.facts.forms."]),
    BadInput("no file of templates", TEMPLATES, ["`templates`: t.yaml cannot be read"]),
    BadInput(
        "a template without its end",
        TEMPLATES,
        ["t.yaml: relation 'capital'", "{subject} and {target}", "one of them at its end"],
        {"facts.jsonl": [TOWN], "t.yaml": "capital: ['{subject} is ruled from']"},
    ),
    BadInput(
        "a form without a target",
        "fit --data.facts=bad.jsonl",
        ["bad.jsonl, line 1", "`forms[0].target`: expected text, got nothing"],
        {"bad.jsonl": [{**GOOD, "forms": [{"prompt": "Aro is ruled from"}]}]},
    ),
    BadInput(
        "forms that are texts",
        "fit --data.facts=bad.jsonl",
        ["bad.jsonl, line 1", "`forms[0]`: expected an object"],
        {"bad.jsonl": [{**GOOD, "forms": ["Aro is ruled from"]}]},
    ),
    BadInput(
        "a joiner that is no text",
        "fit --data.facts=bad.jsonl",
        ["bad.jsonl, line 1", "`forms[0].joiner`: expected text, got"],
        {"bad.jsonl": [{**GOOD, "forms": [{"prompt": "a", "target": "b", "joiner": 1}]}]},
    ),
    BadInput(
        "a conclusion that is trainable or not",
        "fit --data.facts=bad.jsonl",
        ["bad.jsonl, line 1", "`portability[0].trainable`: expected true or false"],
        {"bad.jsonl": [{**GOOD, "portability": [{"prompt": "a", "target": "b", "trainable": "yes"}]}]},
    ),
    BadInput(
        "a form that is too long",
        "fit --data.forms.sources+=Cloze --data.encoding.max_length=16",
        ["facts.jsonl:1: fact 'a': cloze form", "`max_length` is 16"],
        {"facts.jsonl": [GOOD]},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forms(case, refused):
    refused(case)
