"""Adapters that are not whole, or not of this base model, and configurations that no adapter can be made of."""

from pathlib import Path

import pytest
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter, peft_bounds

from fixtures.adapters import NOT_WHOLE, two_targets
from fixtures.bad_inputs import BadInput, Place

CALLS = {
    "predict": "predict --model.adapter=adapter --data.prompts=[x]",
    "test": "test --model.adapter=adapter",
    "export": "export adapter out",
    "merge": "export adapter out --merge",
    "inspect": "inspect adapter",
}
LORA = "fit --model.peft_config=LoraConfig --model.peft_config.target_modules="


def damaged(name: str):
    def make(place: Place) -> None:
        base = BaseModel(str(place.model))
        export_adapter(attach_adapter(base.load(), two_targets()), Path("adapter"), base.source)
        NOT_WHOLE[name][0](Path("adapter"))

    return make


def impatient(place: Place) -> None:
    place.monkeypatch.setattr(peft_bounds, "SECONDS_FOR_PATTERNS", 0.5)


CASES = [
    *(
        BadInput(f"{command} of {name}", call, [*NOT_WHOLE[name][1]], make=damaged(name))
        for command, call in CALLS.items()
        for name in ("wrong_prefix", "half", "empty_file", "other_type", "nan_alpha", "zero_alpha")
    ),
    BadInput("targets that match nothing", f"{LORA}[nope]", ["['nope'] matches no module", "q_proj, up_proj"]),
    BadInput("a pattern without an end", f"{LORA}(.*.*.*.*)+x", ["takes longer than 0.5 seconds"], make=impatient),
    BadInput("no pattern", f"{LORA}(q_proj", ["unterminated subpattern"]),
    BadInput("a huge rank", f"{LORA}all-linear --model.peft_config.r=1000000000", ["four times the base model's"]),
    BadInput("a rank below one", f"{LORA}all-linear --model.peft_config.r=-3", ["`r` should be a positive integer"]),
    BadInput("an alpha that is no number", f"{LORA}all-linear --model.peft_config.lora_alpha=.nan", ["lora_alpha"]),
    *(
        BadInput(
            f"an {name} of 0", f"{lora} --model.peft_config.{name}=0", [f"`{name}: 0` cannot be trained", "above 0"]
        )
        for name, lora in (("lora_alpha", f"{LORA}all-linear"), ("alpha", f"{LORA}all-linear".replace("Lora", "LoHa")))
    ),
    BadInput("nothing to train", f"{LORA}all-linear --model.peft_config.inference_mode=true", ["trains nothing"]),
    BadInput("tasks", "fit --model.peft_config=PolyConfig", ["needs the number of a task", "LoraConfig does not"]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adapters_that_cannot_be_used(case, refused):
    refused(case)
