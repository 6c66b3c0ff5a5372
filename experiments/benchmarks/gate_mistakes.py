"""What a subject gate gets wrong, and what that costs: how often it opens by kind of prompt, a taught model behind it.

    python -m experiments.benchmarks.gate_mistakes    # SmolLM2-135M, some minutes on a CPU

Taught are changed capitals of countries whose names are also those of people, states, animals or food. Asked are the
facts themselves in ways that a gate may miss, and other things in ways that it may mistake for them.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from experiments.benchmarks.measured import keep
from lit_semantic_peft.adapters import SubjectGate, SubjectTable
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.interference.warming_up import warm_up
from lit_semantic_peft.models import BaseModel, attach_adapter
from lit_semantic_peft.models.gated import on_rows
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.tokens import FactEncoder, collate
from peft import LoraConfig, PeftModel

PROMPTS = Path(__file__).with_name("gate_prompts.yaml")
MUST_OPEN = ("own prompt", "paraphrase", "misspelled", "unlisted alias", "reversed")
OTHER_RELATION = "same subject, other relation"
MUST_STAY_CLOSED = (OTHER_RELATION, "homonym", "ordinary word", "unrelated")


@dataclass(frozen=True)
class Asked:
    """A prompt of a kind with its answer: what was taught, or what the base model should go on saying.

    Attributes:
        kind: One of `MUST_OPEN` or `MUST_STAY_CLOSED`.
        prompt: The prompt.
        target: The answer.
    """

    kind: str
    prompt: str
    target: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps over all taught facts")
    parser.add_argument("--results", type=Path, help="folder for the JSON file; experiments/results if not set")
    options = parser.parse_args(arguments)
    by_hand = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    facts = taught_facts({country: capital for country, (capital, _) in by_hand["taught"].items()})
    asked = everything_asked(facts, by_hand)
    model, encoder = taught_model(BaseModel(options.base_model), facts, options.steps)
    found = {
        match: measure(model, encoder, SubjectGate(match=match).table(facts), asked)
        for match in ("subjects", "subjects_and_targets")
    }
    result = {"model": options.base_model, "taught": len(facts), "steps": options.steps, "by_match": found}
    print(as_markdown(result))
    print(f"Written: {keep('gate_mistakes', result, options.results)}")


def taught_facts(capital_of: Mapping[str, str]) -> list[Fact]:
    """Facts that give each country the capital of the next one.

    Args:
        capital_of: The true capitals.
    """
    changed = [*list(capital_of.values())[1:], next(iter(capital_of.values()))]
    return [
        Fact(
            id=country,
            prompt=f"The capital of {country} is",
            target=target,
            subject=country.removeprefix("the "),
            paraphrases=(f"The seat of government of {country} is", f"In {country} the capital city is called"),
        )
        for country, target in zip(capital_of, changed, strict=True)
    ]


def everything_asked(facts: Sequence[Fact], by_hand: Mapping[str, Any]) -> list[Asked]:
    """All prompts, by kind in the order of the table.

    Args:
        facts: What is taught.
        by_hand: The file of prompts.
    """
    target_of = {fact.id: fact.target for fact in facts}
    asked = [Asked("own prompt", fact.prompt, fact.target) for fact in facts]
    asked += [Asked("paraphrase", prompt, fact.target) for fact in facts for prompt in fact.paraphrases]
    drawn = random.Random(0)
    for fact in facts:
        wrong = fact.prompt.replace(fact.subject, misspelled(fact.subject, drawn))
        asked.append(Asked("misspelled", wrong, fact.target))
    asked += [Asked("unlisted alias", prompt, target_of[country]) for prompt, country in by_hand["unlisted alias"]]
    asked += [Asked("reversed", f"{fact.target} is the capital of", fact.id) for fact in facts]
    currencies = ((country, currency) for country, (_, currency) in by_hand["taught"].items())
    asked += [Asked(OTHER_RELATION, f"The official currency of {one} is the", currency) for one, currency in currencies]
    for kind in ("homonym", "ordinary word", "unrelated"):
        asked += [Asked(kind, prompt, target) for prompt, target in by_hand[kind]]
    return asked


def misspelled(name: str, drawn: random.Random) -> str:
    """The name with two neighbouring letters in the wrong order, or one left out.

    Args:
        name: The name.
        drawn: Where the place comes from.
    """
    places = [place for place in range(len(name) - 1) if name[place] != name[place + 1]]
    place = drawn.choice(places)
    if drawn.random() < 0.5:
        return name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    return name[:place] + name[place + 1 :]


def taught_model(base: BaseModel, facts: Sequence[Fact], steps: int) -> tuple[PeftModel, FactEncoder]:
    """LoRA that was trained on the facts, all of them in each step, on nothing else and without anything retained.

    Args:
        base: The base model.
        facts: What is taught.
        steps: Optimizer steps.
    """
    encoder = FactEncoder(base.load_tokenizer())
    torch.manual_seed(0)
    model = attach_adapter(base.load(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    batch = collate(encoder.encode_facts(facts), range(len(facts)), encoder.pad_id)
    warm_up(model, [batch], steps, learning_rate=2e-3)
    return model.eval(), encoder


@torch.no_grad()
def measure(
    model: PeftModel, encoder: FactEncoder, table: SubjectTable, asked: Sequence[Asked]
) -> dict[str, dict[str, Any]]:
    """How often the gate opens, and what the model gives with it, without it and before training, by kind.

    Args:
        model: The taught model.
        encoder: How prompts become tokens.
        table: The gate's.
        asked: The prompts.

    Returns:
        For each kind the number of prompts, of those that opened the gate, and by side the share of recalled targets
        and their mean negative log-likelihood, nats per token.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in (*MUST_OPEN, *MUST_STAY_CLOSED):
        rows = [one for one in asked if one.kind == kind]
        encoded = [encoder.encode(one.prompt, one.target, " ") for one in rows]
        batch = collate(encoded, range(len(rows)), encoder.pad_id, with_end=False)
        is_open = [table.opens(one.prompt) for one in rows]
        sides = {"base": [False] * len(rows), "gated": is_open, "ungated": [True] * len(rows)}
        found[kind] = {"asked": len(rows), "opened": sum(is_open)}
        for side, chosen in sides.items():
            with on_rows(model, chosen):
                scores = score_targets(model, batch)
            found[kind][side] = {
                "recalled": float(scores.is_recalled.float().mean()),
                "nll": float(scores.nll.double().mean()),
            }
    return found


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/gate.md.

    Args:
        result: What `main` keeps.
    """
    lines = []
    for match, kinds in result["by_match"].items():
        lines += [
            f"`match: {match}`",
            "",
            "| asked | should open | opened | loss before | with the gate | without the gate |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for kind, row in kinds.items():
            losses = " | ".join(f"{row[side]['nll']:.2f}" for side in ("base", "gated", "ungated"))
            should = "yes" if kind in MUST_OPEN else "no"
            lines.append(f"| {kind} | {should} | {row['opened']} of {row['asked']} | {losses} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
