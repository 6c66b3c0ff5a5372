"""A conversation with the taught model in the terminal, the base model's answers beside."""

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.callbacks.answer_writer import base_answers
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Question
from lit_semantic_peft.terminal import visible
from lit_semantic_peft.training import SemanticPeftModule

_ANY_ANSWER = "."
"""Stands for an answer where only what comes before it is encoded."""


class Conversation(Callback):
    """Asks for prompts and shows what both models answer, before `predict` answers anything else.

    An empty line, or the end of the input, ends it. With a chat template each model remembers the turns so far and its
    own answers; without one every line is a prompt of its own.
    """

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        print("Ask the taught model; an empty line ends.", flush=True)
        remembers = pl_module.data.encoding.template == "chat"
        taught: list[tuple[str, str]] = []
        base: list[tuple[str, str]] = []
        while prompt := _asked():
            try:
                (answer,) = pl_module.predict_step([_question(pl_module, prompt, taught)], 0)
                without = base_answers(trainer, pl_module, [_question(pl_module, prompt, base)])
            except InputError as error:
                print(visible(f"{error} Starting anew."), flush=True)
                taught, base = [], []
                continue
            print(visible(f"taught: {answer}"), flush=True)
            if without is not None:
                print(visible(f"base:   {without[0]}"), flush=True)
            if remembers:
                taught.append((prompt, answer))
                base += [] if without is None else [(prompt, without[0])]


def _asked() -> str:
    """The next line; empty at the end of the input."""
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _question(module: SemanticPeftModule, prompt: str, history: Sequence[tuple[str, str]]) -> Question:
    """A free prompt behind earlier turns.

    Raises:
        InputError: If it is longer than the model takes, or becomes no token.
    """
    data = module.data
    if history:
        ids = data.encoder.encode(prompt, _ANY_ANSWER, history=history).prompt_ids
    else:
        ids = data.encoder.encode_prompt(prompt)
    if not ids:
        raise InputError(f"{prompt!r} becomes no token in this tokenizer.")
    return Question(0, -1, "prompt", prompt, (), ids, None, data.max_new_tokens)
