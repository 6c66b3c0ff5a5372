"""What must hold for an adapter on a model: each check compares a way of the package with a slow and obvious one."""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from experiments.sweep.families import VOCABULARY, tiny_model
from experiments.sweep.methods import adapter_config
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_matrix
from lit_semantic_peft.models import (
    BaseModelSource,
    adapter_state_dict,
    attach_adapter,
    export_adapter,
    export_merged,
    fact_nll,
    greedy_answers,
    load_adapter,
    load_adapter_state_dict,
    traits_of,
)
from lit_semantic_peft.models.attach import require_answer
from lit_semantic_peft.models.fast_ways import fast_ways
from lit_semantic_peft.models.self_check import self_check
from lit_semantic_peft.tokens import EncodedFact, collate
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, set_seed

Model: TypeAlias = PreTrainedModel | PeftModel

PAD_ID = 0
_TOLERANCE = 2e-4  # of a norm or a logit's size; models in float32
_LEARNING_RATE = 1e-2
_MAX_NEW_TOKENS = 5


class WrongError(Exception):
    """A check found two numbers that should be equal and are not."""


def facts() -> list[EncodedFact]:
    """Five facts of different lengths, of which two prompts are equally long."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())

    return [EncodedFact(ids(prompt), ids(target)) for prompt, target in ((2, 2), (7, 3), (4, 1), (7, 2), (11, 2))]


def check_cell(family: str, method: str, folder: Path) -> list[str]:
    """Runs every check of an adapter type on a model family.

    Args:
        family: One of `family_names`.
        method: One of `method_names`.
        folder: An empty folder.

    Returns:
        What is done the slow way, and what is refused beside the checks, a sentence each.

    Raises:
        InputError: If the package refuses the combination.
        WrongError: If a check fails.
    """
    rows = facts()
    base = tiny_model(family)
    pristine = deepcopy(base)
    self_check(base, rows[:2], PAD_ID)
    model = _new(base, method)
    notes = self_check(model, rows[:2], PAD_ID, trains=True).instead
    _check_losses(model, rows)
    optimizer = _optimizer(model)
    _train(model, rows, optimizer, range(3))
    _check_resumed(model, optimizer, _new(deepcopy(pristine), method), rows)
    _check_losses(model, rows)
    _check_gradients(model, rows)
    _check_answers(model, rows)
    expected = _plain_logits(model.eval(), rows)
    source = BaseModelSource(family, folder, family, "0" * 32)
    export_adapter(model, folder / "adapter", source)
    reloaded = load_adapter(deepcopy(pristine), folder / "adapter", source)
    _compare(_plain_logits(reloaded, rows), expected, "reloaded adapter")
    try:
        export_merged(reloaded, _Tokenizer(), folder / "merged")
    except InputError as refused:
        notes.append(f"merge: {refused}")
    else:
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
        _compare(_plain_logits(merged, rows), expected, "merged model")
    return notes


class _Tokenizer:
    """As much of a tokenizer as a merge needs: a token for each word, by its length."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [3 + len(word) for word in text.split()]}

    def save_pretrained(self, folder: Path) -> None:
        """Writes nothing."""


def _new(base: PreTrainedModel, method: str) -> PeftModel:
    set_seed(1)
    model = attach_adapter(base, adapter_config(method, base)).eval()
    require_answer(model)
    return model


def _optimizer(model: PeftModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=_LEARNING_RATE)


def _train(model: PeftModel, rows: Sequence[EncodedFact], optimizer: torch.optim.Optimizer, steps: range) -> None:
    traits = traits_of(model)
    batch = collate(rows, range(len(rows)), PAD_ID)
    for step in steps:
        loss = fact_nll(model, batch).mean()
        penalty = traits.penalty(model)
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        traits.after_optimizer_step(model, step)
        optimizer.zero_grad(set_to_none=True)


def _check_resumed(
    model: PeftModel, optimizer: torch.optim.Optimizer, resumed: PeftModel, rows: Sequence[EncodedFact]
) -> None:
    """A model that goes on from saved tensors ends where the one that was never interrupted does."""
    traits = traits_of(model)
    state = {name: value.detach().clone() for name, value in adapter_state_dict(model).items()}
    extra, of_optimizer = deepcopy((traits.extra_state(model), optimizer.state_dict()))
    load_adapter_state_dict(resumed, state)
    traits.load_extra_state(resumed, extra)
    its_optimizer = _optimizer(resumed)
    its_optimizer.load_state_dict(of_optimizer)
    _train(resumed, rows, its_optimizer, range(3, 5))
    _train(model, rows, optimizer, range(3, 5))
    theirs = adapter_state_dict(resumed)
    for name, value in adapter_state_dict(model).items():
        _compare(theirs[name], value, f"resumed {name}")


def _plain_logits(model: Model, rows: Sequence[EncodedFact]) -> Tensor:
    """Logits at the places that predict targets, `(N, V)`, each text alone."""
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([[*row.prompt_ids, *row.target_ids]])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            found.append(logits[0, -1 - len(row.target_ids) : -1].float())
    return torch.cat(found)


def _plain_loss(model: Model, row: EncodedFact) -> Tensor:
    ids = torch.tensor([[*row.prompt_ids, *row.target_ids]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return F.cross_entropy(logits[0, -1 - len(row.target_ids) : -1].float(), torch.tensor(row.target_ids))


def _check_losses(model: PeftModel, rows: Sequence[EncodedFact]) -> None:
    with torch.no_grad():
        ours = fact_nll(model, collate(rows, range(len(rows)), PAD_ID))
        expected = torch.stack([_plain_loss(model, row) for row in rows])
    _compare(ours, expected, "losses")


def _check_gradients(model: PeftModel, rows: Sequence[EncodedFact]) -> None:
    trained = [one for one in model.parameters() if one.requires_grad]
    expected = []
    for row in rows:
        gradients = torch.autograd.grad(_plain_loss(model, row), trained, allow_unused=True)
        expected.append(sum(float(one.double().square().sum()) for one in gradients if one is not None))
    ours = gradient_matrix(model, [collate(rows, range(len(rows)), PAD_ID)]).diagonal()
    _compare(ours.double().sqrt(), torch.tensor(expected).double().sqrt(), "gradient norms", 10 * _TOLERANCE)


@torch.no_grad()
def _check_answers(model: PeftModel, rows: Sequence[EncodedFact]) -> None:
    """Free answers are those of one plain pass after the other, and of `generate` where the self-check allows it."""
    prompts = [row.prompt_ids for row in rows]
    model.get_base_model().generation_config = GenerationConfig()  # its own may force or forbid tokens
    answers = greedy_answers(model, prompts, [_MAX_NEW_TOKENS] * len(rows), pad_id=PAD_ID, stop_ids=())
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        for place, token in enumerate(answer):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1].float()
            if logits.max() - logits[token] > _TOLERANCE * float(logits.std()):
                raise WrongError(f"free answer: token {place} after {len(prompt)} is not the likeliest one")
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        if fast_ways(model).cache:
            ids = torch.tensor([prompt])
            config = GenerationConfig(do_sample=False, max_new_tokens=_MAX_NEW_TOKENS, pad_token_id=PAD_ID)
            alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
            if alone[0, len(prompt) :].tolist()[: len(answer)] != answer:
                raise WrongError(f"free answer: not what `generate` says after {len(prompt)} tokens")


def _compare(ours: Tensor, expected: Tensor, what: str, tolerance: float = _TOLERANCE) -> None:
    difference = float((ours - expected).norm())
    scale = float(expected.norm())
    if not difference <= tolerance * scale + 1e-7 or not math.isfinite(scale):
        raise WrongError(f"{what}: differ by {difference:.2g} of {scale:.2g}")
