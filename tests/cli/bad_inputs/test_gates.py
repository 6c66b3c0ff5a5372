"""Gates that would not recognise what is taught, and damaged ones."""

import json
from pathlib import Path

import pytest
from lit_semantic_peft.adapters import SubjectTable
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter
from peft import LoraConfig

from fixtures.bad_inputs import GOOD, BadInput

GATE = "--model.gate=lit_semantic_peft.adapters.SubjectGate"
NAMED = {**GOOD, "subject": "Aro"}


def fit(*words):
    return ["fit", "--data.facts=own.jsonl", GATE, *words]


def gated_adapter(change):
    """Prepares `out/one`, an exported adapter whose gate is then damaged."""

    def prepare(place):
        base = BaseModel(str(place.model))
        model = attach_adapter(base.load(), LoraConfig(r=2, target_modules=["q_proj"]))
        export_adapter(model, "out/one", base.source, gate=SubjectTable(("Aro",)))
        path = Path("out/one/subject_gate.json")
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return prepare


def with_setting(**changed):
    return lambda text: json.dumps(json.loads(text) | changed)


CASES = [
    BadInput(
        "a fact without a subject",
        fit(),
        ["1 of 2 taught facts have no `subject`", "own.jsonl:2", "--columns subject=COLUMN"],
        {"own.jsonl": [NAMED, {"id": "b", "prompt": "Its river is", "target": "Rhine"}]},
    ),
    BadInput(
        "a prompt that does not name its subject",
        fit(),
        ["1 of 1 taught facts do not name a subject", "own.jsonl:1", "`model.gate.aliases`"],
        {"own.jsonl": [{**NAMED, "prompt": "The capital of this country is"}]},
    ),
    BadInput(
        "an alias of nobody",
        fit("--model.gate.aliases={Belvan: [Bel]}"),
        ["`gate.aliases` has 'Belvan'", "no taught fact"],
        {"own.jsonl": [NAMED]},
    ),
    BadInput("another match", fit("--model.gate.match=all"), ["match", "subjects"], {"own.jsonl": [NAMED]}),
]
DAMAGED = {
    "another version": with_setting(format=9),
    "no names": with_setting(names=None),
    "a number among the names": with_setting(names=["Aro", 3]),
    "half a file": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gates_that_would_not_recognise_what_is_taught(case, refused):
    refused(case)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_gates(name, refused):
    refused(
        BadInput(
            name,
            "predict --model.adapter=out/one --data.prompts=['The capital of Aro is']",
            ["subject_gate.json"],
            make=gated_adapter(DAMAGED[name]),
        )
    )
